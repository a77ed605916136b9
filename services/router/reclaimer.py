"""Deeds that take a job from its node and settle it: requeue (the fence), gather what was shown, end (DESIGN §3-4)."""

import time

import structlog

from libs.common.contracts.faults import Fault
from libs.common.states import JobState
from services.router import metrics
from services.router.board import Board
from services.router.clock import ServerClock
from services.router.gatherer import Gatherer
from services.router.index import Job
from services.router.settle import counts
from services.router.transitions import Transitions

log = structlog.get_logger()


class Reclaimer:
    """All of it raises BusError; then nothing has changed here, and the next look finds what is left to do."""

    def __init__(self, board: Board, transitions: Transitions, gatherer: Gatherer, clock: ServerClock) -> None:
        self._board = board
        self._transitions = transitions
        self._gatherer = gatherer
        self._clock = clock

    async def requeue(self, job: Job, epoch: int, fault: Fault | None, reason: str, *, refused: bool = False) -> None:
        """Take the job from the node that holds it under `epoch`; under another epoch it is none of our business."""
        board = self._board
        if (
            board.index.jobs.get(job.key) is not job
            or not job.bound
            or job.binding is None
            or job.binding.epoch != epoch
        ):
            return
        node = job.binding.node
        if node in board.fleet.nodes and counts(fault) and reason == "given_back":
            board.fleet.nodes[node].failed(job.key, time.monotonic())
        binding, sequence = await self._transitions.requeue(job, fault, refused=refused)
        metrics.requeues.labels(reason).inc()
        log.info(
            "job.requeued", job_id=job.key.job, client=job.key.client, node=node, epoch=epoch, reason=reason,
            code=fault.code if fault else None, attempts=len(binding.attempts),
        )  # fmt: skip
        board.fold(job.key, "active", binding, sequence, self._clock.now_ms())
        await self.gather(job)

    async def gather(self, job: Job) -> None:
        """After the fence: what was shown of the epochs before? Text that was is made durable before anybody waits with it."""
        assert job.binding is not None
        sequence = job.sequence
        carried = await self._transitions.visible_text(job)
        epochs = [past.epoch for past in job.binding.past if past.base is None]
        text = await self._gatherer.gather(job.key, epochs, carried)
        if job.sequence != sequence or self._board.index.jobs.get(job.key) is not job:
            return
        job.gathered = text
        if text:
            binding, sequence = await self._transitions.keep(job)
            log.info("job.text_kept", job_id=job.key.job, bytes=len(text))
            self._board.fold(job.key, "active", binding, sequence, self._clock.now_ms())
            job.gathered = text  # the same as in the record; saves reading it
        self._board.place(job)

    async def end(self, job: Job, state: JobState, fault: Fault) -> None:
        completion, sequence = await self._transitions.end(job, state, fault)
        metrics.ended.labels(str(state)).inc()
        log.info(
            "job.ended", job_id=job.key.job, client=job.key.client, state=state, code=fault.code, epoch=completion.epoch
        )
        self._board.fold(job.key, "done", completion, sequence, self._clock.now_ms())
