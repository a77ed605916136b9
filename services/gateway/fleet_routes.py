"""`/nodes`: the fleet as the gateways see it, drains, and work on the models of one node (scope admin:cluster)."""

import asyncio
from contextlib import aclosing
from typing import Any

from libs.common.bus.connection import Bus
from libs.common.contracts.clients import Principal, Scope
from libs.common.contracts.codec import encode
from libs.common.contracts.control import ModelAnswer, ModelOrder, ModelWork
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.ids import new_op_id
from services.gateway import operations
from services.gateway.catalog import Catalog
from services.gateway.fleet import FleetView
from services.gateway.http import Disconnected, Exchange
from services.gateway.node_work import NodeWork
from services.gateway.policies import no_node, read_node_policy, read_order
from services.gateway.route import Reach, RouteSpec
from services.gateway.streaming import Draining, Streams

MAX_ORDER = 64 * 1024
SAY_S = 10.0  # a line at least so often: proxies cut connections that are silent for a minute


class FleetRoutes:
    def __init__(self, bus: Bus, fleet: FleetView, catalog: Catalog, streams: Streams) -> None:
        self._fleet = fleet
        self._catalog = catalog
        self._streams = streams
        self._work = NodeWork(bus, fleet)

    def routes(self) -> list[RouteSpec]:
        return [
            RouteSpec("GET", "/nodes", Scope.ADMIN_CLUSTER, Reach.FLEET, self.nodes, operations.NODES),
            RouteSpec(
                "PUT", "/nodes/{node}/policy", Scope.ADMIN_CLUSTER, Reach.FLEET, self.decide, operations.DECIDE_NODE
            ),
            RouteSpec(
                "POST", "/nodes/{node}/models", Scope.ADMIN_CLUSTER, Reach.FLEET, self.work, operations.WORK_ON_NODE
            ),
        ]

    async def nodes(self, exchange: Exchange, principal: Principal) -> None:
        await exchange.respond_json(200, {"nodes": self._fleet.nodes(self._catalog.draining)})

    async def decide(self, exchange: Exchange, principal: Principal) -> None:
        node = exchange.params["node"]
        policy = read_node_policy(node, await exchange.body(MAX_ORDER))
        if self._fleet.node(node) is None and node not in self._catalog.nodes:
            raise no_node(node, [beat.node for beat, _ in self._fleet.current()])
        exchange.deed, exchange.target = "node.drain" if policy.draining else "node.resume", node
        await self._catalog.set_node(policy)
        await exchange.respond_json(200, {"name": node, "policy": {"draining": policy.draining}})

    async def work(self, exchange: Exchange, principal: Principal) -> None:
        """The work goes on when whoever asked for it leaves."""
        node = exchange.params["node"]
        order = read_order(await exchange.body(MAX_ORDER), node, self._catalog.model, new_op_id())
        as_stream = _as_stream(exchange)
        exchange.deed, exchange.target = f"model.{order.op}", f"{order.model}@{node}"
        self._work.check(node, order)
        async with self._streams.opened(principal):
            exchange.tell()  # now: it may last for an hour
            try:
                await self._relay(exchange, node, order, as_stream=as_stream)
            except Draining:
                message = "this gateway is shutting down; the work goes on, ask again to see it"
                if not exchange.started:
                    raise failed(Code.DRAINING, message) from None
                await self._end(exchange, node, order, Code.DRAINING, message)
            except Failed as error:
                if not exchange.started:
                    raise
                await self._end(exchange, node, order, error.fault.code, error.fault.message)

    async def _relay(self, exchange: Exchange, node: str, order: ModelOrder, *, as_stream: bool) -> None:
        loop = asyncio.get_running_loop()
        said: tuple[ModelAnswer | None, float] = (None, 0.0)
        async with aclosing(self._work.follow(node, order)) as answers:
            while (answer := await self._streams.during(exchange, _next(answers))) is not None:
                if not as_stream:
                    said = (answer, 0.0)
                elif answer != said[0] or loop.time() - said[1] >= SAY_S:
                    said = (answer, loop.time())
                    if not exchange.started:
                        await exchange.start_lines()
                    await self._write(exchange, line(node, order, answer))
        last = said[0]
        if as_stream:
            if last is not None and last.state is ModelWork.FAILED:
                exchange.failure = str(Code.NODE_FAILED)
            await exchange.finish()
        elif last is not None and last.state is ModelWork.FAILED:
            raise failed(Code.NODE_FAILED, f"node {node}: {last.status}")
        elif last is not None:
            await exchange.respond_json(200, line(node, order, last))

    async def _end(self, exchange: Exchange, node: str, order: ModelOrder, code: Code, message: str) -> None:
        exchange.failure = str(code)
        broken = ModelAnswer(state=ModelWork.FAILED, status=message)
        await self._write(exchange, line(node, order, broken) | {"code": str(code)})
        await exchange.finish()

    async def _write(self, exchange: Exchange, value: dict[str, Any]) -> None:
        try:
            await exchange.write(encode(value) + b"\n")
        except OSError as error:
            raise Disconnected from error


def line(node: str, order: ModelOrder, answer: ModelAnswer) -> dict[str, Any]:
    return {
        "node": node,
        "op": str(order.op),
        "model": order.model,
        "state": str(answer.state),
        "status": answer.status,
        "completed": answer.completed,
        "total": answer.total,
    }


async def _next(answers: Any) -> ModelAnswer | None:
    found: ModelAnswer | None = await anext(answers, None)
    return found


def _as_stream(exchange: Exchange) -> bool:
    asked = exchange.query.get("stream", "true")
    if asked not in ("true", "1", "false", "0"):
        raise failed(Code.INVALID_REQUEST, "stream must be true or false", path="stream")
    return asked in ("true", "1")
