"""The life of a signing key, `next → active → retiring → gone`, as a pure function of the ring and the time.

`next` is published and does not sign yet, so that everybody knows it when it does; `active` signs; `retiring` is published
until its last token has ended. A withdrawn key (emergency) is gone at once, whatever its state. Every replica takes the same
steps; whoever writes the record first wins, and the others find nothing left to do.
"""

from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import msgspec

from libs.common.contracts.codec import Contract, Decoder
from libs.common.credentials.tokens import COUNTS_FOR_S

State = Literal["next", "active", "retiring"]

RETIRE_S = COUNTS_FOR_S  # until its last token is refused

PAST_S = 400 * 86400  # as long as the audit trail is kept
MAX_PAST = 100


class SigningKey(Contract, frozen=True, kw_only=True):
    """`kid` is the thumbprint of RFC 7638; `sealed` the private key; `since` when its state began, seconds since the epoch."""

    kid: str
    state: State
    public: dict[str, Any]
    sealed: str
    created_at: str
    since: int = 0


class PastKey(Contract, frozen=True, kw_only=True):
    """The public part of a key that signs nothing any more and verifies no token: only what it signed for longer, the audit
    trail's checkpoints."""

    kid: str
    public: dict[str, Any]
    since: int


class Ring(Contract, frozen=True, kw_only=True):
    """`asked`: an administrator wants the active key replaced before its time. `past`: who went in peace, oldest first."""

    keys: tuple[SigningKey, ...]
    asked: bool = False
    past: tuple[PastKey, ...] = ()

    def of(self, state: State) -> SigningKey | None:
        return next((key for key in self.keys if key.state == state), None)


decode_ring = Decoder(Ring)


class Schedule(NamedTuple):
    """Seconds: how long a key signs, how long it is published before, and after."""

    life_s: float = 30 * 86400.0
    lead_s: float = 330.0
    retire_s: float = RETIRE_S


class Step(NamedTuple):
    ring: Ring
    reasons: tuple[str, ...]


def step(
    ring: Ring | None, now: float, schedule: Schedule, spare: SigningKey, withdrawn: Collection[str] = ()
) -> Step | None:
    """What the ring becomes; None when nothing is due. `spare` is a fresh key, taken when one is needed."""
    before = ring or Ring(keys=())
    reasons: list[str] = []
    kept: list[SigningKey] = []
    past = [key for key in before.past if key.kid not in withdrawn]
    for key in before.keys:
        if key.kid in withdrawn:
            reasons.append(f"{key.kid} was withdrawn")
        elif key.state == "retiring" and now >= key.since + schedule.retire_s:
            reasons.append(f"the last token of {key.kid} has ended")
            past = [old for old in past if now < old.since + PAST_S]
            past.append(PastKey(kid=key.kid, public=key.public, since=int(now)))
        else:
            kept.append(key)
    after = Ring(keys=tuple(kept), asked=before.asked, past=tuple(past[-MAX_PAST:]))
    active, following = after.of("active"), after.of("next")
    if active is None:
        # Nobody could sign: there is no time to publish first.
        first = following or spare
        reasons.append(f"{first.kid} signs, because no key did")
        keys = (*(key for key in kept if key is not first), _to(first, "active", now))
        after = msgspec.structs.replace(after, keys=keys, asked=False)
    elif following is None:
        if after.asked or now >= active.since + schedule.life_s - schedule.lead_s:
            reasons.append(f"{spare.kid} is published, to follow {active.kid}")
            after = msgspec.structs.replace(after, keys=(*kept, _to(spare, "next", now)))
    elif now >= following.since + schedule.lead_s and (after.asked or now >= active.since + schedule.life_s):
        reasons.append(f"{following.kid} signs, {active.kid} retires")
        others = (key for key in kept if key not in (active, following))
        keys = (*others, _to(active, "retiring", now), _to(following, "active", now))
        after = msgspec.structs.replace(after, keys=keys, asked=False)
    return Step(after, tuple(reasons)) if reasons else None


def ends_at(key: SigningKey, schedule: Schedule) -> float:
    """When its state ends, at the earliest; seconds since the epoch."""
    spans = {"next": schedule.lead_s, "active": schedule.life_s, "retiring": schedule.retire_s}
    return key.since + spans[key.state]


def _to(key: SigningKey, state: State, now: float) -> SigningKey:
    return msgspec.structs.replace(key, state=state, since=int(now))
