"""What comes next for a job that no node holds: wait, be queued, or end. Pure."""

from typing import NamedTuple, TypeAlias

from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.jobs import MAX_ATTEMPTS, Attempt
from libs.common.states import JobState
from services.router.index import Job

BACKOFF_MS = (200, 4_000, 15_000)  # after the first, second, … failed attempt: one failure may be the node's alone
BUSY_BACKOFF_MS = 1_000
REFUSED_BACKOFF_MS = 500


class Gather(NamedTuple):
    """Ask first what was shown of the epochs before."""


class Wait(NamedTuple):
    until_ms: int


class Enqueue(NamedTuple):
    pass


class End(NamedTuple):
    state: JobState
    fault: Fault


NextStep: TypeAlias = Gather | Wait | Enqueue | End


def settle(job: Job, now_ms: float) -> NextStep:
    """For a job that is not bound. A job is never bound after its deadline, nor while an epoch is ungathered."""
    if job.ungathered:
        return Gather()
    if job.cancel is not None:
        return End(JobState.CANCELLED, Fault(code=Code.CANCELLED, message=job.cancel))
    if now_ms >= job.deadline_ms:
        message = f"no node took the job within its {job.submission.deadline_s:g} s; give it a longer deadline_s"
        return End(JobState.EXPIRED, Fault(code=Code.DEADLINE_EXCEEDED, message=message))
    attempts = job.binding.attempts if job.binding else ()
    if len(attempts) >= MAX_ATTEMPTS:
        interrupted = Fault(code=Code.INTERRUPTED, message=_interrupted(attempts))
        return End(JobState.FAILED, interrupted if job.base else attempts[-1].fault)
    if job.not_before_ms > now_ms:
        return Wait(job.not_before_ms)
    return Enqueue()


def not_before(attempts: tuple[Attempt, ...], fault: Fault | None, now_ms: int, *, refused: bool = False) -> int:
    """When a job that was given back may be bound again: at once after no fault of anybody's, later after each failure."""
    if refused:
        return now_ms + REFUSED_BACKOFF_MS
    if fault is None:
        return now_ms
    if fault.code is Code.NODE_BUSY:
        return now_ms + BUSY_BACKOFF_MS
    return now_ms + BACKOFF_MS[min(len(attempts), len(BACKOFF_MS)) - 1]


def counts(fault: Fault | None) -> bool:
    """Is this a failed attempt? Busy is not broken (peers-and-routing.md §3.2, 17)."""
    return fault is not None and fault.code is not Code.NODE_BUSY


def _interrupted(attempts: tuple[Attempt, ...]) -> str:
    why = attempts[-1].fault.message
    return f"{len(attempts)} attempts failed after part of the answer had been shown (the last: {why}); send the request again"
