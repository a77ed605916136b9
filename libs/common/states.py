"""The life of a job: one table, one function. Pure. Drawn in docs/states.md, which a test holds against this table.

`running` is never stored: it is what a bound job is called once output or a heartbeat shows that it runs.
"""

from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"
    BOUND = "bound"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        return self in FINAL


class JobEvent(StrEnum):
    """Who makes it: bind, requeue: the router. start: derived from output. The rest: the worker that holds the
    binding, or the router when no live worker holds it."""

    BIND = "bind"
    START = "start"
    REQUEUE = "requeue"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"


FINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})

_Q, _B, _R = JobState.QUEUED, JobState.BOUND, JobState.RUNNING
_ENDINGS = {
    JobEvent.FAIL: JobState.FAILED,
    JobEvent.CANCEL: JobState.CANCELLED,
    JobEvent.EXPIRE: JobState.EXPIRED,
}

TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (_Q, JobEvent.BIND): _B,
    (_B, JobEvent.START): _R,
    (_B, JobEvent.REQUEUE): _Q,
    (_R, JobEvent.REQUEUE): _Q,
    (_B, JobEvent.SUCCEED): JobState.SUCCEEDED,  # a short answer ends before anybody saw it run
    (_R, JobEvent.SUCCEED): JobState.SUCCEEDED,
    **{(state, event): end for state in (_Q, _B, _R) for event, end in _ENDINGS.items()},
}


class IllegalTransition(Exception):
    """The code asked for a step that the table does not have: a bug, not a race."""


def advance(state: JobState, event: JobEvent) -> JobState | None:
    """The next state; None when the job has already ended (the event came late, which is normal); else IllegalTransition."""
    if state.final:
        return None
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"{state} has no {event}") from None
