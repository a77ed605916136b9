"""One account's record in the bucket `limits`: all that is counted, so that one compare-and-set decides. Pure.

Read and written by gateways only, also by those of the release before and after: a field added gets a default.
"""

import msgspec

from libs.common.contracts.clients import Limits
from libs.common.contracts.codec import Decoder
from services.gateway.limits import budgets, reader_slots, rolling, stream_slots
from services.gateway.limits.budgets import Budgets
from services.gateway.limits.reader_slots import Readers
from services.gateway.limits.rolling import Instant, Rolling
from services.gateway.limits.stream_slots import Slots

TTL_S = 35 * 86400  # after the last write: a month's sum must not be lost before the month is over


class Ledger(msgspec.Struct, omit_defaults=True):
    """Changed in place, by functions that know neither clock nor network."""

    client: str = ""  # whose jobs the open reservations name
    requests: Rolling = msgspec.field(default_factory=Rolling)
    tokens: Budgets = msgspec.field(default_factory=Budgets)
    streams: Slots = {}
    readers: Readers = {}


_decode = Decoder(Ledger)


def read(value: bytes | None) -> Ledger:
    """Raises Malformed."""
    return _decode(value) if value else Ledger()


def draft(ledger: Ledger, now: Instant, limits: Limits) -> Ledger:
    """A copy to work on, without what time has taken away."""
    copy = Ledger(
        client=ledger.client,
        requests=Rolling(spent=ledger.requests.spent, leases=ledger.requests.leases),
        tokens=msgspec.structs.replace(
            ledger.tokens, open=dict(ledger.tokens.open), prompts=dict(ledger.tokens.prompts)
        ),
        streams=dict(ledger.streams),
        readers=dict(ledger.readers),
    )
    rolling.forget(copy.requests, now)
    budgets.roll(copy.tokens, now, limits)
    stream_slots.forget(copy.streams, now)
    reader_slots.forget(copy.readers, now)
    return copy


def sums(ledger: Ledger, now: Instant, limits: Limits) -> Ledger:
    """What a draft would say of requests and tokens, without a copy of the open reservations: asked for each answer."""
    tokens = msgspec.structs.replace(ledger.tokens, open={}, prompts={})
    return draft(Ledger(requests=ledger.requests, tokens=tokens), now, limits)
