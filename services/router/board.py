"""Where each unfinished job stands: with a node, in the queue, due to be gathered or ended, or put off to a later moment.

Index, queue and fleet have this one owner. Records come in through `fold`, whoever wrote them, and each job is put where it
belongs then; nothing here waits for anybody.
"""

import heapq
import time
from collections.abc import Callable
from typing import Any

from libs.common.contracts.jobs import Binding, Completion, Submission
from libs.common.contracts.nodes import Heartbeat, canonical_model
from libs.common.contracts.subjects import JobKey
from libs.common.folder import Entry
from libs.common.states import JobState
from services.router import metrics
from services.router.asking import place_of, real_cost
from services.router.clock import ServerClock
from services.router.fleet import Fleet, Hold, RunKey
from services.router.index import Index, Job
from services.router.oversight import Care
from services.router.queue import PendingQueue
from services.router.scheduler import Scheduler
from services.router.settle import End, Enqueue, Gather, Wait, settle

FRESH_MS = 60_000  # a submission older than this was read at a rebuild, and says nothing of what is asked for now


class Board:
    """`changed` is called when there may be something to do. Of the tables a job is in one only."""

    def __init__(self, clock: ServerClock, changed: Callable[[], None]) -> None:
        self.index = Index()
        self.fleet = Fleet()
        self.scheduler = Scheduler(self.fleet)
        self.bound: dict[JobKey, Job] = {}
        self.due: dict[JobKey, Job] = {}  # to be gathered or ended
        self.waiting: set[JobKey] = set()  # not before a time that stands in `_delayed`
        self.care: dict[JobKey, Care] = {}
        self._delayed: list[tuple[int, JobKey]] = []
        self._clock = clock
        self._changed = changed

    @property
    def queue(self) -> PendingQueue:
        return self.scheduler.queue

    def reset(self) -> None:
        """Everything is about to be told anew; what was learned of nodes and models stays."""
        self.index.clear()
        self.scheduler.clear()
        for table in (self._delayed, self.bound, self.due, self.waiting, self.care):
            table.clear()
        for view in self.fleet.nodes.values():
            for run in view.holds:
                view.doubt(run)

    # -- what is told --------------------------------------------------------------------------------------------------

    def fold(self, key: JobKey, record: str, facts: Any, sequence: int, at_ms: int) -> None:
        """A record of the log, or one of ours as soon as it is acked. `at_ms`: the server's time of it."""
        before = self.bound.get(key)
        held = before.binding if before else None
        known = key in self.index.jobs
        job = self.index.fold(key, record, facts, sequence, at_ms)
        if isinstance(facts, Completion) and known and key not in self.index.jobs:
            self._learn(key, facts)
        if job is not None:
            if record == "new" and self._clock.now_ms() - at_ms < FRESH_MS:
                self.scheduler.pricing.demand.asked(canonical_model(job.submission.model), time.monotonic())
            self.place(job)
            if record == "active":
                self._hold_slot(job)
        elif key not in self.index.jobs:
            self.drop(key)
        if held is not None and held.node in self.fleet.nodes and self.bound_as((key, held.epoch), held.boot) is None:
            self.fleet.nodes[held.node].doubt((key, held.epoch))
        self._changed()

    def adopt(self, key: JobKey, newest: Entry | None) -> None:
        """Somebody else's record stands in the folder: it is the truth."""
        match newest.facts if newest else None:
            case Completion() as facts:
                record = "done"
            case Binding() as facts:
                record = "active"
            case Submission() as facts:
                record = "new"  # a later life of the id
            case None:
                self.index.forget(key)
                self.drop(key)
                return
        assert newest
        self.fold(key, record, facts, newest.sequence, newest.at_ms)

    def hear(self, beat: Heartbeat, now: float, *, live: bool) -> None:
        before = self.fleet.nodes.get(beat.node)
        if not self.fleet.hear(beat, now, live=live):
            return
        view = self.fleet.nodes[beat.node]
        if view is not before:
            for job in self.bound.values():
                self._hold_slot(job)
        self.scheduler.pricing.prefixes.keep_only(view.name, view.loaded | view.loading)
        self.scheduler.pricing.see(view)
        self._changed()

    # -- where jobs stand ----------------------------------------------------------------------------------------------

    def bound_as(self, run: RunKey, boot: str | None) -> Job | None:
        """The job, if it is bound under this epoch to this boot."""
        job = self.index.jobs.get(run[0])
        if job is None or job.binding is None or not job.bound:
            return None
        return job if (job.binding.epoch, job.binding.boot) == (run[1], boot) else None

    def care_of(self, key: JobKey) -> Care:
        return self.care.setdefault(key, Care())

    def has_placed(self, key: JobKey) -> bool:
        return any(key in table for table in (self.queue, self.bound, self.waiting, self.due))

    def place(self, job: Job) -> None:
        """Put an unfinished job where it belongs now."""
        key = job.key
        self.bound.pop(key, None)
        self.due.pop(key, None)
        self.waiting.discard(key)
        if job.bound:
            self.scheduler.discard(key)
            self.bound[key] = job
            self.queue.serve(key, time.monotonic(), place_of(job, self.scheduler.pricing.rates)[0])
            return
        self.queue.ended(key, time.monotonic(), weight=job.submission.weight, tokens=0.0)
        match settle(job, self._clock.now_ms()):
            case Enqueue():
                self.scheduler.add(*place_of(job, self.scheduler.pricing.rates))
            case Wait(until_ms):
                self.put_off(key, until_ms)
            case Gather() | End():
                self.scheduler.discard(key)
                self.due[key] = job  # the reconciler does it

    def put_off(self, key: JobKey, until_ms: int) -> None:
        """By the server's clock."""
        self.scheduler.discard(key)
        self.due.pop(key, None)
        self.waiting.add(key)
        heapq.heappush(self._delayed, (until_ms, key))

    def take_up(self, now_ms: float) -> None:
        """Those whose time has come are put where they belong."""
        while self._delayed and self._delayed[0][0] <= now_ms:
            _, key = heapq.heappop(self._delayed)
            if (delayed := self.index.jobs.get(key)) is not None:
                self.place(delayed)

    def drop(self, key: JobKey) -> None:
        """The job has ended."""
        self.scheduler.drop(key)
        self.queue.ended(key, time.monotonic())
        self.waiting.discard(key)
        self.bound.pop(key, None)
        self.due.pop(key, None)
        self.care.pop(key, None)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _learn(self, key: JobKey, done: Completion) -> None:
        """From a job that has just ended."""
        self.queue.ended(key, time.monotonic(), weight=done.job.weight, tokens=real_cost(done))
        if done.state is not JobState.SUCCEEDED or done.node not in self.fleet.nodes:
            return
        self.fleet.nodes[done.node].succeeded()
        self.scheduler.learn(key, done)
        timings, decision = done.timings, done.decision
        if timings and decision and decision.ttft_s and timings.first_token is not None and timings.wait is not None:
            metrics.prediction_ratio.observe((timings.first_token - timings.wait) / decision.ttft_s)

    def _hold_slot(self, job: Job) -> None:
        """A binding takes a slot, whoever made it, before its worker has said a word about it."""
        binding = job.binding
        if binding is None or binding.node is None or (view := self.fleet.nodes.get(binding.node)) is None:
            return
        if view.beat.boot == binding.boot:
            hold = Hold(canonical_model(job.submission.model))
            if binding.decision and binding.decision.ttft_s is not None:  # times as whoever bound it predicted them
                began = time.monotonic() - max(0, self._clock.now_ms() - job.bound_ms) / 1000
                hold.ready_at = began + binding.decision.load_s
                hold.ends_at = began + binding.decision.ttft_s + self.scheduler.pricing.work(hold.model)
            view.reserve((job.key, binding.epoch), hold)
