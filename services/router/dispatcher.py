"""Deeds that give a job to a node: bind it, order its run, and act on what the worker answers (DESIGN §3, Dispatch)."""

import time

import structlog

from libs.common.contracts.control import RunAnswer, RunStatus
from libs.common.contracts.jobs import Binding
from libs.common.contracts.nodes import canonical_model
from libs.common.journal import Journal
from services.router import metrics
from services.router.board import Board
from services.router.clock import ServerClock
from services.router.index import Job
from services.router.loader import Loader
from services.router.orders import Orders
from services.router.reclaimer import Reclaimer
from services.router.residency import Stay
from services.router.transitions import Transitions
from services.router.wishes import Placement

log = structlog.get_logger()


class Dispatcher:
    def __init__(
        self,
        board: Board,
        transitions: Transitions,
        orders: Orders,
        loader: Loader,
        reclaimer: Reclaimer,
        journal: Journal,
        clock: ServerClock,
    ) -> None:
        self._board = board
        self._transitions = transitions
        self._orders = orders
        self._loader = loader
        self._reclaimer = reclaimer
        self._journal = journal
        self._clock = clock

    async def bind(self, job: Job, placement: Placement) -> None:
        """Its node has reserved the slot. Raises BusError, and then the slot is free again."""
        run = (job.key, job.sequence)
        try:
            binding, sequence = await self._transitions.bind(job, placement.node.beat.boot, placement.decision)
        except BaseException:
            placement.node.withdraw(run)
            raise
        metrics.binds.labels("yes" if placement.decision.cold else "no").inc()
        self._board.fold(job.key, "active", binding, sequence, self._clock.now_ms())
        await self.order(job, binding)

    async def order(self, job: Job, binding: Binding) -> None:
        """Saying it again is safe: a boot runs a given epoch once."""
        self._board.care_of(job.key).asked_at = time.monotonic()
        stays, evict = self._residency(job, binding)
        answer = await self._orders.run(job, binding, self._clock.now_ms(), stays, evict)
        if answer is not None:
            await self._hear_answer(job, binding, answer)

    async def tell_cancel(self, job: Job, binding: Binding) -> None:
        assert binding.node is not None
        assert binding.boot is not None
        await self._orders.cancel(job.key, binding.node, binding.boot, binding.epoch, job.cancel or "cancelled")

    def _residency(self, job: Job, binding: Binding) -> tuple[Stay | None, tuple[str, ...]]:
        """How its model is to be held there, and what leaves for it."""
        view = self._board.fleet.nodes.get(binding.node or "")
        if view is None:
            return None, ()
        hold = view.holds.get((job.key, binding.epoch))
        stays = self._loader.stay(canonical_model(job.submission.model), view, job.submission.num_ctx)
        return stays, hold.evict if hold else ()

    async def _hear_answer(self, job: Job, binding: Binding, answer: RunAnswer) -> None:
        run = (job.key, binding.epoch)
        assert binding.node is not None
        view = self._board.fleet.nodes.get(binding.node)
        if view is not None and view.beat.boot == binding.boot:
            if answer.status is RunStatus.RUNNING:
                view.confirm(run, canonical_model(job.submission.model), answer.changes)
            else:
                view.release(run, answer.changes)
        if answer.status is RunStatus.RUNNING or self._board.bound_as(run, binding.boot) is not job:
            return
        match answer.status:
            case RunStatus.GIVEN_BACK:
                await self._reclaimer.requeue(job, binding.epoch, answer.fault, "given_back")
            case RunStatus.REFUSED:
                log.info("run.refused", job_id=job.key.job, node=binding.node, reason=answer.reason)
                await self._reclaimer.requeue(job, binding.epoch, None, "refused", refused=True)
            case RunStatus.FINISHED:
                newest = await self._journal.newest(job.key)
                if newest is None or newest.final or newest.sequence != job.sequence:
                    self._board.adopt(job.key, newest)
                else:
                    await self._reclaimer.requeue(job, binding.epoch, None, "finished")
