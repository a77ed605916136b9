"""`/models`: the fleet's models and what operators decide about them (scope admin:cluster)."""

from libs.common.contracts.catalog import ModelPolicy
from libs.common.contracts.clients import Principal, Scope
from libs.common.contracts.faults import Code, failed
from libs.common.contracts.nodes import canonical_model
from services.gateway import operations
from services.gateway.catalog import Catalog
from services.gateway.fleet import FleetView
from services.gateway.fleet_models import models_view, policy_view
from services.gateway.http import Exchange
from services.gateway.node_work import has_model
from services.gateway.policies import changed, model_name, no_node, not_on_node, read_model_change
from services.gateway.route import Reach, RouteSpec
from services.gateway.wish import check_model

MAX_POLICY = 64 * 1024


class ModelsRoutes:
    def __init__(self, fleet: FleetView, catalog: Catalog) -> None:
        self._fleet = fleet
        self._catalog = catalog

    def routes(self) -> list[RouteSpec]:
        return [
            RouteSpec("GET", "/models", Scope.ADMIN_CLUSTER, Reach.FLEET, self.list, operations.MODELS),
            RouteSpec(
                "PUT",
                "/models/{name:path}/policy",
                Scope.ADMIN_CLUSTER,
                Reach.FLEET,
                self.change,
                operations.DECIDE_MODEL,
            ),
            RouteSpec(
                "DELETE",
                "/models/{name:path}/policy",
                Scope.ADMIN_CLUSTER,
                Reach.FLEET,
                self.forget,
                operations.FORGET_MODEL,
            ),
        ]

    async def list(self, exchange: Exchange, principal: Principal) -> None:
        rows = models_view(self._fleet.current(), self._catalog.models, self._catalog.draining)
        await exchange.respond_json(200, {"models": rows})

    async def change(self, exchange: Exchange, principal: Principal) -> None:
        name = model_name(exchange.params["name"])
        exchange.target = name
        change = read_model_change(await exchange.body(MAX_POLICY))
        if canonical_model(name) not in self._catalog.models:
            check_model(name, self._fleet.models(), is_complete=self._fleet.is_complete)

        def apply(before: ModelPolicy) -> ModelPolicy:
            for node in change.newly_pinned(before):
                self._check_pin(name, node)
            return changed(before, change)

        after = await self._catalog.change_model(name, apply)
        await exchange.respond_json(200, {"name": after.name, "policy": policy_view(after)})

    async def forget(self, exchange: Exchange, principal: Principal) -> None:
        exchange.target = name = canonical_model(model_name(exchange.params["name"]))
        if not await self._catalog.forget_model(name):
            raise failed(Code.NOT_FOUND, f"there is no policy for the model {name}; GET /models lists those there are")
        await exchange.respond_json(200, {"name": name, "policy": policy_view(ModelPolicy(name=name))})

    def _check_pin(self, model: str, node: str) -> None:
        """Raises Failed: a pin on a node that cannot hold it would wait for ever."""
        seen = self._fleet.node(node)
        if seen is None:
            raise no_node(node, [beat.node for beat, _ in self._fleet.current()])
        if not has_model(seen[0], model):
            raise not_on_node(model, node)
