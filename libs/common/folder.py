"""A job's folder: what its newest record says, how long records stay, and what a write to it came to (DESIGN §3). Pure."""

import hashlib
from enum import Enum
from typing import NamedTuple, TypeAlias

from libs.common.contracts.headers import FACTS
from libs.common.contracts.jobs import (
    Binding,
    Completion,
    Submission,
    decode_binding,
    decode_completion,
    decode_submission,
)

Facts: TypeAlias = Submission | Binding | Completion

DONE_EXTRA_TTL_S = 2  # `done` outlives the job's other records, so that nothing can run again behind it


class Entry(NamedTuple):
    """The newest record of a folder. `facts` None: the record was emptied and no `done` is there; the folder is free."""

    sequence: int
    at_ms: int
    facts: Facts | None
    body: bytes

    @property
    def final(self) -> bool:
        return isinstance(self.facts, Completion)


class Verdict(Enum):
    LANDED = "landed"  # it is my write that stands there, or stood there before what stands there now
    AGAIN = "again"  # nothing new: a deposed leader spoke, or the write never arrived
    LOST = "lost"


def judge(newest: Entry | None, *, op_id: str, expected: int) -> tuple[Verdict, int]:
    """What a write with `op_id` on top of sequence `expected` came to, given the folder now; with its sequence if it landed."""
    if newest is None:
        return (Verdict.AGAIN, 0) if expected == 0 else (Verdict.LOST, 0)
    facts = newest.facts
    if facts is not None and facts.op_id == op_id:
        return Verdict.LANDED, newest.sequence
    if isinstance(facts, Binding | Completion) and facts.job.op_id == op_id:
        return Verdict.LANDED, facts.submitted  # a submit that somebody has already built on
    # An emptied folder is free as well, but only for who names its sequence: that is LOST, too.
    return (Verdict.AGAIN, 0) if newest.sequence <= expected else (Verdict.LOST, 0)


def ttl_s(job: Submission, *, created_ms: int, now_ms: int, done: bool = False) -> int:
    """Seconds that a record written now may stay: all of a job's records end at deadline + result TTL, `done` last."""
    end_ms = created_ms + (job.deadline_s + job.result_ttl_s) * 1000
    return max(1, round((end_ms - now_ms) / 1000)) + (DONE_EXTRA_TTL_S if done else 0)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def facts_of(subject: str, headers: dict[str, str]) -> Facts | None:
    """The facts of a `new`, `active` or `done`; None for an emptied record. Raises Malformed."""
    text = headers.get(FACTS)
    if text is None:
        return None
    match subject.rpartition(".")[2]:
        case "new":
            return decode_submission(text)
        case "active":
            return decode_binding(text)
        case "done":
            return decode_completion(text)
    return None
