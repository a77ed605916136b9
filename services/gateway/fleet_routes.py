"""`/nodes`: the fleet as the gateways see it."""

from libs.common.contracts.clients import Principal, Scope
from services.gateway.endpoint import RouteSpec
from services.gateway.fleet import FleetView
from services.gateway.http import Exchange


class FleetRoutes:
    def __init__(self, fleet: FleetView) -> None:
        self._fleet = fleet

    def routes(self) -> list[RouteSpec]:
        return [RouteSpec("GET", "/nodes", Scope.ADMIN_CLUSTER, self.nodes)]

    async def nodes(self, exchange: Exchange, principal: Principal) -> None:
        await exchange.respond_json(200, {"nodes": self._fleet.nodes()})
