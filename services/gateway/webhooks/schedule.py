"""When to look, and when to try again: functions of the time that has passed, so that no counter has to be kept. Pure.

Offsets are from Standard Webhooks' example (5 s, 5 min, 30 min, 2 h, 5 h, 10 h …), cut at a day. Times are seconds.
"""

from enum import Enum
from typing import NamedTuple

from libs.common.contracts.clients import Client
from libs.common.contracts.jobs import Binding, Completion, Submission
from libs.common.folder import Entry

GIVE_UP_S = 24 * 3600.0
EVENT_TTL_S = int(GIVE_UP_S) + 2 * 3600  # the last attempt may be an hour late
ATTEMPTS_AT = (0.0, 5.0, 305.0, 2105.0, 9305.0, 27305.0, 63305.0, GIVE_UP_S)  # after the event
JITTER = 0.1  # of a delay, at most so much more
MAX_RETRY_AFTER = 3600.0
DISABLE_AFTER_S = 5 * 86400.0  # of nothing but failures

NEVER_CAME_S = (
    60.0  # a job whose write was announced so long ago is not written any more (Journal.GONE_BY_S, and its parts)
)
SOONEST_S, LATEST_S = 5.0, 300.0  # between two looks at a job that has not ended; hints come before them


def next_attempt(elapsed: float, chance: float, retry_after: float | None = None) -> float | None:
    """Seconds from now to the next attempt, `elapsed` after the event; None: that was the last one.

    `chance`: 0 to 1. What the receiver asks for counts up to an hour, and never brings an attempt forward.
    """
    later = next((at for at in ATTEMPTS_AT if at > elapsed), None)
    if later is None:
        return None
    # An attempt that took long must not be followed at once by the next.
    delay = max(later - elapsed, ATTEMPTS_AT[1]) * (1 + JITTER * chance)
    return max(delay, min(retry_after or 0.0, MAX_RETRY_AFTER))


class Step(Enum):
    SEND = "send"
    WAIT = "wait"
    DROP = "drop"


class Verdict(NamedTuple):
    step: Step
    delay: float = 0.0
    reason: str = ""


def admit(client: Client | None, *, deleted: bool, elapsed: float) -> Verdict:
    """Whether an event of this client may go `elapsed` seconds after it came to be. Of a disabled client it is held, as if
    its receiver were away: who is enabled again loses nothing. What an expired client began may end.

    `deleted`: auth said so; that there is no record that can be read is no such word.
    """
    if deleted:
        return Verdict(Step.DROP, reason="the client was deleted")
    if client is not None and not client.disabled:
        return Verdict(Step.SEND)
    if elapsed >= GIVE_UP_S:
        return Verdict(Step.DROP, reason="the client was disabled for as long as events are kept")
    return Verdict(Step.WAIT, min(max(SOONEST_S, elapsed / 2), LATEST_S), "the client is disabled")


def judge(entry: Entry | None, *, age: float, now_ms: int) -> Verdict:
    """What to do about a job that was announced `age` seconds ago, given its newest record."""
    if entry is None or entry.facts is None:
        if age < NEVER_CAME_S:
            return Verdict(Step.WAIT, SOONEST_S, "not there yet")
        return Verdict(Step.DROP, reason="the job never came to be, or its time is over")
    facts = entry.facts
    job = facts if isinstance(facts, Submission) else facts.job
    if not job.webhook:
        return Verdict(Step.DROP, reason="the job names no webhook")
    if isinstance(facts, Completion):
        return Verdict(Step.SEND)
    created_ms = facts.created_ms if isinstance(facts, Binding) else entry.at_ms
    lived = (now_ms - created_ms) / 1000
    # Not later than shortly after the deadline: the record may go a minute after that.
    left = max(SOONEST_S, job.deadline_s + SOONEST_S - lived)
    return Verdict(Step.WAIT, min(max(SOONEST_S, lived / 2), LATEST_S, left), "it has not ended")
