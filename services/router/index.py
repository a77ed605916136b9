"""Every unfinished job, folded from the log (DESIGN §3). Pure: no I/O, no clock.

One consumer for each of `new`, `active`, `done` and the cancel marks feeds it; between them there is no order, so sequences
decide: a final record wins over smaller sequences only, and a `new` drops everything older of its id, because an id made
from an Idempotency-Key can live again. Only finished jobs are emptied, so an empty record also ends what is older of its id.
The router's own writes are folded in the same way as soon as they are acked.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from libs.common.contracts.jobs import KEEPS_REQUEST, Binding, CancelMark, Completion, Parts, Submission
from libs.common.contracts.subjects import JobKey

Facts: TypeAlias = Submission | Binding | Completion | CancelMark | None

MAX_FINISHED = 100_000  # remembered only while one consumer may be ahead of another
MAX_MARKS = 100_000  # cancel marks whose job was not seen yet; most are for jobs that have ended


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
    """What is older than `sequence` of an id has ended."""

    sequence: int  # of `done`, or of a record that was emptied after it
    done: int = 0  # the newest `done` that was seen
    keeps_request: bool = False  # by that `done`
    emptied: int = 0  # the newest `new` that was emptied: the request before it is not kept

    def keeps(self, submitted: int) -> bool | None:
        """Is the request kept of the life whose `new` has this sequence? None: not known here."""
        if self.emptied > submitted:
            return False
        return self.keeps_request if self.done > submitted else None


NOT_ENDED = Ended(0)


class Index:
    def __init__(self) -> None:
        self.jobs: dict[JobKey, Job] = {}
        self.leftovers: dict[JobKey, Leftover] = {}
        self._finished: OrderedDict[JobKey, Ended] = OrderedDict()
        self._marks: OrderedDict[JobKey, CancelMark] = OrderedDict()

    def clear(self) -> None:
        for table in (self.jobs, self.leftovers, self._finished, self._marks):
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
            keeps = ended.keeps(sequence)
            if not keeps:
                leftover = self._leave(key)
                leftover.new, leftover.parts, leftover.doubtful = sequence, facts.parts, keeps is None
            return None
        known = self.jobs.get(key)
        if known is not None and known.sequence >= sequence:
            return None
        return self._begin(Job(key, facts, submitted=sequence, created_ms=at_ms, sequence=sequence))

    def _fold_active(self, key: JobKey, facts: Binding, sequence: int, at_ms: int) -> Job | None:
        ended = self._finished.get(key, NOT_ENDED)
        if ended.sequence > sequence:
            keeps = ended.keeps(facts.submitted)
            leftover = self._leave(key)
            leftover.active = sequence
            leftover.parts = None if keeps else facts.job.parts
            leftover.doubtful = keeps is None
            return None
        job = self.jobs.get(key)
        if job is not None and job.sequence >= sequence:
            return None
        if job is None or job.submitted != facts.submitted:
            job = self._begin(
                Job(key, facts.job, submitted=facts.submitted, created_ms=facts.created_ms, sequence=sequence)
            )
        job.sequence, job.binding, job.bound_ms, job.gathered = sequence, facts, at_ms, None
        return job

    def _begin(self, job: Job) -> Job:
        """A life of the id of which no end is known: what was known of lives before is of no use any more."""
        self._finished.pop(job.key, None)
        self.leftovers.pop(job.key, None)
        mark = self._marks.get(job.key)
        if mark is not None and mark.submitted <= job.submitted:
            del self._marks[job.key]
            if mark.submitted == job.submitted:
                job.cancel = mark.reason
        self.jobs[job.key] = job
        return job

    def _fold_done(self, key: JobKey, facts: Facts, sequence: int) -> None:
        job = self.jobs.get(key)
        if job is not None and job.sequence > sequence:
            return  # a later life of the id
        ended = self._finished.get(key, NOT_ENDED)
        if ended.done >= sequence:
            return
        keeps = isinstance(facts, Completion) and facts.state in KEEPS_REQUEST and not facts.erased
        self._end(key, ended._replace(sequence=max(ended.sequence, sequence), done=sequence, keeps_request=keeps))
        if job is not None:
            if not keeps or job.binding is not None:
                leftover = self._leave(key)
                leftover.new = 0 if keeps else job.submitted
                leftover.active = job.sequence if job.binding is not None else 0
                leftover.parts = None if keeps else job.submission.parts
            del self.jobs[key]
            return
        standing = self.leftovers.get(key)
        if standing is not None and standing.doubtful and max(standing.new, standing.active) < sequence:
            standing.doubtful = False
            if keeps:
                standing.new, standing.parts = 0, None
                self._drop_if_tidy(key, standing)

    def _fold_emptied(self, key: JobKey, record: str, sequence: int) -> None:
        job = self.jobs.get(key)
        if job is not None and job.sequence > sequence:
            return  # a later life of the id
        ended = self._finished.get(key, NOT_ENDED)
        emptied = max(ended.emptied, sequence) if record == "new" else ended.emptied
        self._end(key, ended._replace(sequence=max(ended.sequence, sequence), emptied=emptied))
        if job is not None:
            # The `done` comes later, or was older than the rebuild. The other record stands as yet.
            leftover = self._leave(key)
            leftover.new, leftover.parts = job.submitted, job.submission.parts
            leftover.active = job.sequence if job.binding is not None else 0
            leftover.doubtful = True
            self.forget(key)
        standing = self.leftovers.get(key)
        if standing is None:
            return
        if record == "new":
            standing.new, standing.doubtful = 0, False
        else:
            standing.active = 0
        self._drop_if_tidy(key, standing)

    def _fold_cancel(self, key: JobKey, facts: Facts) -> Job | None:
        if not isinstance(facts, CancelMark):
            return None
        job = self.jobs.get(key)
        if job is not None and facts.submitted == job.submitted:
            if job.cancel == facts.reason:
                return None
            job.cancel = facts.reason
            return job
        newest = max(job.submitted if job else 0, self._finished.get(key, NOT_ENDED).sequence)
        if facts.submitted > newest and ((kept := self._marks.get(key)) is None or kept.submitted <= facts.submitted):
            self._marks[key] = facts  # its job has not come yet, or has ended
            self._marks.move_to_end(key)
            while len(self._marks) > MAX_MARKS:
                self._marks.popitem(last=False)
        return None

    def _end(self, key: JobKey, ended: Ended) -> None:
        self._finished[key] = ended
        self._finished.move_to_end(key)
        while len(self._finished) > MAX_FINISHED:
            self._finished.popitem(last=False)
        mark = self._marks.get(key)
        if mark is not None and mark.submitted < ended.sequence:
            del self._marks[key]

    def _drop_if_tidy(self, key: JobKey, leftover: Leftover) -> None:
        if not leftover.new and not leftover.active:
            del self.leftovers[key]

    def _leave(self, key: JobKey) -> Leftover:
        return self.leftovers.setdefault(key, Leftover())
