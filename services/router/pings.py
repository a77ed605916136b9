"""Pings to every node that is not gone: a process that was killed is noticed by its silence within three of them."""

import asyncio
from collections.abc import Callable

import structlog

from libs.common.bus.connection import Bus
from services.router.fleet import Fleet, NodeView
from services.router.orders import Orders

log = structlog.get_logger()

PING_S = 1.0


class Pings:
    """`changed` is called when a node is gone."""

    def __init__(self, bus: Bus, fleet: Fleet, orders: Orders, changed: Callable[[], None]) -> None:
        self._bus = bus
        self._fleet = fleet
        self._orders = orders
        self._changed = changed

    async def run(self) -> None:
        """Endless."""
        while True:
            views = [view for view in self._fleet.nodes.values() if not view.gone] if self._bus.connected else []
            await asyncio.gather(asyncio.sleep(PING_S), *(self._one(view) for view in views))

    async def _one(self, view: NodeView) -> None:
        answered, nobody = await self._orders.ping(view)
        if self._fleet.ping_result(view.name, view.beat.boot, answered=answered, nobody=nobody):
            log.warning("node.gone", node=view.name, boot=view.beat.boot)
            self._changed()
