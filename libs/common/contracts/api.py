"""`api.<client>.…`: how internal services use Arriero over NATS (docs/nats.md). Request/reply, JSON.

Every answer is an `Answer`: `ok` with the same body as the HTTP route would give, or `fault`. Answers go only to reply
subjects under `_INBOX.<client>.`, so that no caller can aim an answer at somebody else.
"""

import msgspec

from libs.common.contracts.codec import NO_JSON, Contract, Decoder
from libs.common.contracts.faults import Fault


class Submit(Contract, frozen=True, kw_only=True):
    """`job` is what `POST /jobs` takes; unknown fields in it are refused, as there."""

    job: msgspec.Raw
    idempotency_key: str | None = None


class Get(Contract, frozen=True, kw_only=True):
    id: str
    wait_s: float = 0.0


class Cancel(Contract, frozen=True, kw_only=True):
    id: str


class List(Contract, frozen=True, kw_only=True):
    cursor: str | None = None
    limit: int = 50
    state: str | None = None


class Answer(Contract, frozen=True, kw_only=True):
    ok: msgspec.Raw = NO_JSON
    fault: Fault | None = None


decode_submit = Decoder(Submit)
decode_get = Decoder(Get)
decode_cancel = Decoder(Cancel)
decode_list = Decoder(List)
decode_answer = Decoder(Answer)
