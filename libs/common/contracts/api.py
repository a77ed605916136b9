"""`api.<client>.…`: how internal services use Arriero over NATS (docs/nats.md). Request/reply, JSON.

Every answer is an `Answer`: `ok` with the same body as the HTTP route would give, or `fault`. Answers go only to reply
subjects under `_INBOX.<client>.`, so that no caller can aim an answer at somebody else.
"""

import msgspec

from libs.common.contracts.codec import NO_JSON, Contract, Decoder
from libs.common.contracts.faults import Fault
from libs.common.contracts.jobs import PastEpoch
from libs.common.states import JobState


class Submit(Contract, frozen=True, kw_only=True):
    """`job` is what `POST /jobs` takes; unknown fields in it are refused, as there."""

    job: msgspec.Raw
    idempotency_key: str | None = None


class Get(Contract, frozen=True, kw_only=True):
    id: str
    wait_s: float = 0.0


class Read(Contract, frozen=True, kw_only=True):
    """The log of a job from there on. Epoch 0, offset 0: from its beginning.

    With `wait_s` it answers when the job has ended, or then. Meanwhile the gateway watches from that position on (the end of an
    event): should the worker die, it answers for what was shown since.

    `reader`: which of those that read this job; the reads of one are one stream of the client's `open_streams`.
    """

    id: str
    epoch: int = 0
    offset: int = 0
    wait_s: float = 0.0
    reader: str = ""


class Leave(Contract, frozen=True, kw_only=True):
    """That reader reads no more, though its job may go on."""

    id: str
    reader: str = ""


class Piece(Contract, frozen=True, kw_only=True):
    """What `read` gives: bytes of the log of `epoch`, the newest, from `offset` on; none when there are no more yet.

    `offset` None: no node holds the job; or this log does not begin with what stands before the position that was asked for,
    because the base of its epoch (`lineage`) is smaller; or the answer is older than the question.
    """

    state: JobState
    epoch: int
    lineage: tuple[PastEpoch, ...] = ()
    offset: int | None = None
    log: bytes = b""  # base64 in JSON; not cut at events


class Cancel(Contract, frozen=True, kw_only=True):
    """Of a job that has ended it erases what is left, as `DELETE /jobs/{id}` does; with `keep` it leaves it as it is."""

    id: str
    keep: bool = False


class List(Contract, frozen=True, kw_only=True):
    cursor: str | None = None
    limit: int = 50
    state: str | None = None


class Answer(Contract, frozen=True, kw_only=True):
    ok: msgspec.Raw = NO_JSON
    fault: Fault | None = None


decode_submit = Decoder(Submit)
decode_get = Decoder(Get)
decode_read = Decoder(Read)
decode_piece = Decoder(Piece)
decode_leave = Decoder(Leave)
decode_cancel = Decoder(Cancel)
decode_list = Decoder(List)
decode_answer = Decoder(Answer)
