"""Requests to whichever gateway takes them."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from libs.client.errors import (
    ArrieroError,
    Fault,
    NoAnswer,
    NoGateway,
    NotConnected,
    TooLarge,
    error_of,
)
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away, NoResponders, Refused
from libs.common.contracts import subjects
from libs.common.contracts.subjects import ApiVerb

TRY_S = 5.0  # one request; a gateway that was killed never answers, and another one may
LEAST_S = 1.0  # of a try that begins just before the time is over: given up at once, "nobody is there" would be "nobody knows"
PAUSE_S = 0.25  # between two tries


class _Answer(msgspec.Struct):
    ok: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    fault: Fault | None = None


_decode = msgspec.json.Decoder(_Answer).decode

# Somebody else, or a little later, may do better; everything else comes out the same again.
PASSING = frozenset(
    {"not_connected", "no_gateway", "no_answer", "unavailable", "overloaded", "draining", "rate_limited"}
)


class Calls:
    def __init__(self, bus: Bus, client: str) -> None:
        self.bus = bus
        self.client = client

    async def once(self, verb: ApiVerb, payload: dict[str, Any], *, timeout: float = TRY_S) -> bytes:
        """The JSON of `ok`. Raises ArrieroError."""
        if not self.bus.connected:
            raise NotConnected("NATS is away at the moment", retryable=not self.bus.lost.is_set())
        try:
            reply = await self.bus.request(
                subjects.api(self.client, verb), msgspec.json.encode(payload), timeout=timeout
            )
            answer = _decode(reply)
        except NoResponders:
            raise NoGateway("no gateway of Arriero listens to this client", retryable=True) from None
        except Away as error:
            said = f"; NATS said: {self.bus.complaint}" if "permissions" in self.bus.complaint.lower() else ""
            raise NoAnswer(f"no gateway answered within {timeout:g} s{said}", retryable=True) from error
        except Refused as error:
            raise TooLarge("the request does not fit into one NATS message; POST /jobs takes larger ones") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArrieroError("a gateway's answer cannot be read", code="internal") from error
        if answer.fault is not None:
            raise error_of(answer.fault)
        if answer.ok is msgspec.UNSET:
            raise ArrieroError("a gateway's answer holds nothing", code="internal")
        return bytes(answer.ok)

    async def surely(
        self,
        verb: ApiVerb,
        payload: dict[str, Any],
        *,
        within: float,
        may_repeat: Callable[[ArrieroError], bool] | None = None,
    ) -> bytes:
        """Tried again after what passes, until `within` seconds are over; the last error then. A try that has begun may take
        LEAST_S longer. For what can be said twice, or `may_repeat` decides."""
        give_up = time.monotonic() + within
        while True:
            left = give_up - time.monotonic()
            try:
                return await self.once(verb, payload, timeout=min(TRY_S, max(LEAST_S, left)))
            except ArrieroError as error:
                pause = max(PAUSE_S, error.retry_after_s or 0)
                allowed = may_repeat(error) if may_repeat else error.code in PASSING
                if not allowed or time.monotonic() + pause >= give_up:
                    raise
            await asyncio.sleep(pause)


def view_of(ok: bytes) -> dict[str, Any]:
    """Raises ArrieroError."""
    try:
        return msgspec.json.decode(ok, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArrieroError("a gateway's answer is of an unknown form", code="internal") from error
