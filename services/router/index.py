"""Every unfinished job, folded from the log (DESIGN §3). Pure: no I/O, no clock.

Two consumers feed it, one of `new`, `active` and cancels, one of `done`; between them there is no order, so sequences
decide: a final record wins over smaller sequences only, and a `new` drops everything older of its id, because an id made
from an Idempotency-Key can live again. The router's own writes are folded in the same way as soon as they are acked.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from libs.common.contracts.jobs import KEEPS_REQUEST, Binding, CancelMark, Completion, Parts, Submission
from libs.common.contracts.subjects import JobKey

Facts: TypeAlias = Submission | Binding | Completion | CancelMark | None

MAX_FINISHED = 100_000  # remembered only while one consumer may be ahead of the other


@dataclass(slots=True)
class Job:
    """An unfinished job. `sequence` is that of its newest record: what the next compare-and-set must name."""

    key: JobKey
    submission: Submission
    submitted: int
    created_ms: int
    sequence: int
    binding: Binding | None = None  # the newest `active`: bound if it names a node, else given back
    bound_ms: int = 0
    cancel: str | None = None  # the reason, once a cancel mark for this life of the id was seen
    gathered: bytes | None = None  # the visible text to go on from, once this process has it

    @property
    def base(self) -> int:
        """Bytes of visible text to go on from, as far as they are known."""
        return len(self.gathered) if self.gathered is not None else self.binding.base if self.binding else 0

    @property
    def bound(self) -> bool:
        return self.binding is not None and self.binding.node is not None

    @property
    def ungathered(self) -> bool:
        """A requeue lists its epoch without a base until gathered; nobody binds or ends before."""
        return (
            not self.bound
            and self.gathered is None
            and self.binding is not None
            and any(past.base is None for past in self.binding.past)
        )

    @property
    def deadline_ms(self) -> float:
        return self.created_ms + self.submission.deadline_s * 1000

    @property
    def not_before_ms(self) -> int:
        return (self.binding.not_before_ms or 0) if self.binding and not self.bound else 0


@dataclass(slots=True)
class Leftover:
    """What of a finished job is to be emptied: records by sequence (0: not, or not there), and its request's parts."""

    new: int = 0
    active: int = 0
    parts: Parts | None = None
    doubtful: bool = False  # its `done` was not seen here: whether the request is kept for a retry is to be looked up


class Ended(NamedTuple):
    sequence: int  # of `done`
    keeps_request: bool


NOT_ENDED = Ended(0, False)


class Index:
    def __init__(self) -> None:
        self.jobs: dict[JobKey, Job] = {}
        self.leftovers: dict[JobKey, Leftover] = {}
        self._finished: OrderedDict[JobKey, Ended] = OrderedDict()

    def clear(self) -> None:
        for table in (self.jobs, self.leftovers, self._finished):
            table.clear()

    def fold(self, key: JobKey, record: str, facts: Facts, sequence: int, at_ms: int) -> Job | None:
        """Fold one record; the job if it is unfinished and this record changed it. Older or repeated records change nothing."""
        match record:
            case "done":
                self._fold_done(key, facts, sequence)
                return None
            case "cancel":
                return self._fold_cancel(key, facts)
            case "new" | "active" if facts is None:
                self._fold_emptied(key, record, sequence)
                return None
            case "new" if isinstance(facts, Submission):
                return self._fold_new(key, facts, sequence, at_ms)
            case "active" if isinstance(facts, Binding):
                return self._fold_active(key, facts, sequence, at_ms)
        return None

    def forget(self, key: JobKey) -> None:
        """The folder is gone: its records have expired."""
        self.jobs.pop(key, None)

    def take_leftover(self) -> tuple[JobKey, Leftover] | None:
        """One finished job's leftovers, to be tidied by the caller; what could not be is given to `put_back`."""
        if not self.leftovers:
            return None
        key = next(iter(self.leftovers))
        return key, self.leftovers.pop(key)

    def put_back(self, key: JobKey, leftover: Leftover) -> None:
        if key not in self.jobs:
            self.leftovers.setdefault(key, leftover)

    def _fold_new(self, key: JobKey, facts: Submission, sequence: int, at_ms: int) -> Job | None:
        ended = self._finished.get(key, NOT_ENDED)
        if ended.sequence > sequence:
            if not ended.keeps_request:
                leftover = self._leave(key)
                leftover.new, leftover.parts = sequence, facts.parts
            return None
        known = self.jobs.get(key)
        if known is not None and known.sequence >= sequence:
            return None
        self._finished.pop(key, None)
        self.leftovers.pop(key, None)
        job = Job(key, facts, submitted=sequence, created_ms=at_ms, sequence=sequence)
        self.jobs[key] = job
        return job

    def _fold_active(self, key: JobKey, facts: Binding, sequence: int, at_ms: int) -> Job | None:
        ended = self._finished.get(key, NOT_ENDED)
        if ended.sequence > sequence:
            leftover = self._leave(key)
            leftover.active = sequence
            leftover.parts = None if ended.keeps_request else facts.job.parts
            return None
        job = self.jobs.get(key)
        if job is not None and job.sequence >= sequence:
            return None
        if job is None or job.submitted != facts.submitted:
            job = Job(key, facts.job, submitted=facts.submitted, created_ms=facts.created_ms, sequence=sequence)
            self.jobs[key] = job
        job.sequence, job.binding, job.bound_ms, job.gathered = sequence, facts, at_ms, None
        return job

    def _fold_done(self, key: JobKey, facts: Facts, sequence: int) -> None:
        job = self.jobs.get(key)
        if job is not None and job.sequence > sequence:
            return  # a later life of the id
        if self._finished.get(key, NOT_ENDED).sequence >= sequence:
            return
        keeps = isinstance(facts, Completion) and facts.state in KEEPS_REQUEST and not facts.erased
        self._finished[key] = Ended(sequence, keeps)
        self._finished.move_to_end(key)
        while len(self._finished) > MAX_FINISHED:
            self._finished.popitem(last=False)
        if job is not None:
            if not keeps or job.binding is not None:
                leftover = self._leave(key)
                leftover.new = 0 if keeps else job.submitted
                leftover.active = job.sequence if job.binding is not None else 0
                leftover.parts = None if keeps else job.submission.parts
            del self.jobs[key]

    def _fold_emptied(self, key: JobKey, record: str, sequence: int) -> None:
        job = self.jobs.get(key)
        if job is not None and job.sequence < sequence:
            # Only finished jobs are emptied: the `done` was older than the rebuild. The other record stands as yet.
            leftover = self._leave(key)
            leftover.new, leftover.parts = job.submitted, job.submission.parts
            leftover.active = job.sequence if job.binding is not None else 0
            leftover.doubtful = record == "active"
            self.forget(key)
        standing = self.leftovers.get(key)
        if standing is None:
            return
        if record == "new":
            standing.new = 0
        else:
            standing.active = 0
        if not standing.new and not standing.active:
            del self.leftovers[key]

    def _fold_cancel(self, key: JobKey, facts: Facts) -> Job | None:
        if not isinstance(facts, CancelMark):
            return None
        # A mark follows its `new` in the log and comes by the same consumer: without that job it was for one that has ended.
        job = self.jobs.get(key)
        if job is None or facts.submitted != job.submitted or job.cancel == facts.reason:
            return None
        job.cancel = facts.reason
        return job

    def _leave(self, key: JobKey) -> Leftover:
        return self.leftovers.setdefault(key, Leftover())
