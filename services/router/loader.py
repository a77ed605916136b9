"""Orders about memory: how a run's model is to be held, and loads ahead of need."""

import asyncio
import time
from collections.abc import Callable

import structlog

from libs.common.contracts.control import ModelOp, ModelOrder, ModelWork
from libs.common.contracts.nodes import canonical_model
from libs.common.ids import new_op_id
from services.router import metrics
from services.router.fleet import NodeView
from services.router.orders import Orders
from services.router.residency import Stay, stay
from services.router.scheduler import Scheduler
from services.router.wishes import Loading

log = structlog.get_logger()

LOOK_S = 0.5
SHOWN_S = 2.5  # a heartbeat comes every two seconds


class Loader:
    """`ended` is called when a load has ended, well or not."""

    def __init__(self, scheduler: Scheduler, orders: Orders, ended: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._orders = orders
        self._ended = ended

    def stay(self, model: str, view: NodeView, needed_ctx: int = 0) -> Stay:
        pricing = self._scheduler.pricing
        per_second = pricing.demand.per_second(model, time.monotonic())
        return stay(model, view, pricing.catalog.model(model), per_second=per_second, needed_ctx=needed_ctx)

    async def load(self, wish: Loading) -> None:
        """Raises BusError, and then the load may go on; the next heartbeat tells."""
        view, model = wish.node, wish.model
        spelled = next((m.name for m in view.beat.models if canonical_model(m.name) == model), model)
        stays = self.stay(model, view)
        order = ModelOrder(
            op=ModelOp.LOAD, model=spelled, keep_alive=stays.keep_alive, num_ctx=stays.num_ctx,
            evict=wish.order.evict, op_id=new_op_id(),
        )  # fmt: skip
        log.info("model.loads", model=model, node=view.name, evict=wish.order.evict)
        began = time.monotonic()
        failed_at: float | None = began
        try:
            while True:
                answer = await self._orders.load(view.name, view.beat.boot, order)
                if answer.state is not ModelWork.RUNNING:
                    break
                await asyncio.sleep(LOOK_S)
            if answer.state is ModelWork.DONE:
                failed_at = None
                self._learn(view, model, answer.load_s)
                await asyncio.sleep(SHOWN_S)  # until a heartbeat has it, or it would be loaded again
            else:
                failed_at = time.monotonic()
                log.warning("model.not_loaded", model=model, node=view.name, status=answer.status)
        finally:
            metrics.loads.labels("failed" if failed_at else "done").inc()
            view.preload_ended(model, failed_at)
            self._scheduler.moved()
            self._ended()

    def _learn(self, view: NodeView, model: str, load_s: float) -> None:
        size = view.sizes.get(model, 0)
        self._scheduler.pricing.rates.learn(view.name, model, size, load_s=load_s)
