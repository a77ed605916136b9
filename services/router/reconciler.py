"""Finds what was missed, like a controller: each tick looks at what is bound or has to end, at a slice of all the rest, and at
where nodes and index disagree. Hints only make things quicker; this makes them sure."""

from collections import deque
from collections.abc import Callable

import structlog

from libs.common.contracts.subjects import JobKey
from services.router.board import Board
from services.router.clock import ServerClock
from services.router.deeds import Deeds
from services.router.dispatcher import Dispatcher
from services.router.index import Job
from services.router.oversight import AskForRun, TakeBack, TellCancel, oversee
from services.router.readers import Readers
from services.router.reclaimer import Reclaimer
from services.router.settle import End, Enqueue, Gather, Wait, settle
from services.router.strays import Strays

log = structlog.get_logger()

SWEEP_AT_ONCE = 1000  # jobs of the whole index looked at per tick: 20,000 in five seconds, a millisecond each time


class Reconciler:
    """`hearing_since`: since when silence of a node means something, monotonic seconds."""

    def __init__(
        self,
        board: Board,
        deeds: Deeds,
        dispatcher: Dispatcher,
        reclaimer: Reclaimer,
        readers: Readers,
        strays: Strays,
        clock: ServerClock,
        hearing_since: Callable[[], float],
    ) -> None:
        self._board = board
        self._deeds = deeds
        self._dispatcher = dispatcher
        self._reclaimer = reclaimer
        self._readers = readers
        self._strays = strays
        self._clock = clock
        self._hearing_since = hearing_since
        self._to_sweep: deque[JobKey] = deque()

    def reset(self) -> None:
        self._to_sweep.clear()

    def tick(self, now: float) -> None:
        board, busy = self._board, self._deeds.busy
        board.queue.rise(self._clock.now_ms())
        board.fleet.bury(now, self._hearing_since())
        board.take_up(self._clock.now_ms())
        for job in list(board.bound.values()):
            if job.key not in busy:
                self._look_at_bound(job, now)
        for job in list(board.due.values()):
            if job.key not in busy:
                self._look_at_unbound(job)
        self.sweep(now)
        self._strays.look(now)
        self._strays.look_for_empty_holds()

    def sweep(self, now: float) -> None:
        """A slice of everything, in turn: deadlines, readers, and whatever fell through is put back where it belongs."""
        board = self._board
        if not self._to_sweep:
            self._to_sweep.extend(board.index.jobs)
        now_ms = self._clock.now_ms()
        for _ in range(min(SWEEP_AT_ONCE, len(self._to_sweep))):
            job = board.index.jobs.get(self._to_sweep.popleft())
            if job is None:
                continue
            if job.key in board.queue:
                if now_ms >= job.deadline_ms:
                    board.place(job)
            elif not board.has_placed(job.key) and job.key not in self._deeds.busy:
                log.error("job.misplaced", job_id=job.key.job)
                board.place(job)
            if not job.submission.detached:
                self._readers.look_for(job, now)

    def _look_at_unbound(self, job: Job) -> None:
        match settle(job, self._clock.now_ms()):
            case Gather():
                self._deeds.do(job.key, self._reclaimer.gather(job))
            case End(state, fault):
                self._deeds.do(job.key, self._reclaimer.end(job, state, fault))
            case Enqueue() | Wait():
                self._board.place(job)

    def _look_at_bound(self, job: Job, now: float) -> None:
        binding, fleet, care = job.binding, self._board.fleet, self._board.care_of(job.key)
        assert binding is not None
        assert binding.node is not None
        assert binding.boot is not None
        alive = fleet.alive_boot(binding.node, binding.boot, now, self._hearing_since())
        view = fleet.nodes.get(binding.node)
        for step in oversee(job, care, view, alive=alive, now=now, now_ms=self._clock.now_ms()):
            match step:
                case TakeBack(fault, reason):
                    self._deeds.do(job.key, self._reclaimer.requeue(job, binding.epoch, fault, reason))
                case TellCancel():
                    care.told_at = now
                    self._deeds.spawn(self._dispatcher.tell_cancel(job, binding))
                case AskForRun():
                    self._deeds.do(job.key, self._dispatcher.order(job, binding))
