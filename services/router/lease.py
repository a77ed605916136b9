"""One router is active at a time, for order and fairness; safety never depends on it (DESIGN §3).

The lease is a key that lives 6 s and is renewed every 2. A standby takes over when the key is gone, or at once when the
holder's process does not answer any more: nobody is hurt if it was wrong, the compare-and-set on every job still decides.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away, BusError, Conflict, NoResponders
from libs.common.bus.link import Message
from libs.common.contracts import subjects
from libs.common.contracts.codec import Contract, Decoder, Malformed, encode
from libs.common.contracts.control import Pong
from libs.common.contracts.streams import LEASES

log = structlog.get_logger()

KEY = "router"
TTL_S = 6
RENEW_S = 2.0
LOOK_S = 0.5  # how often a standby looks
NOBODY_TIMES = 3


class LeaseRecord(Contract, frozen=True, kw_only=True):
    boot: str


decode_lease = Decoder(LeaseRecord)


class Lease:
    """`active` is true while this process may believe that it is the one."""

    def __init__(self, bus: Bus, boot: str, on_change: Callable[[bool], Awaitable[None]]) -> None:
        self._bus = bus
        self._bucket = Bucket(bus, LEASES)
        self._boot = boot
        self._on_change = on_change
        self._revision = 0
        self._held_until = 0.0
        self._was_active = False
        self._nobody = 0
        self._looked_at = 0.0
        self._released = False

    @property
    def active(self) -> bool:
        return not self._released and time.monotonic() < self._held_until

    def problem(self) -> str | None:
        """For /readyz: a router that can neither hold nor watch the lease does nothing."""
        silent = time.monotonic() - self._looked_at
        return f"the lease was last seen {silent:.0f} s ago" if silent > TTL_S else None

    async def run(self) -> None:
        await self._bus.serve(subjects.worker("router", self._boot, "ping"), self._pong)
        while True:
            try:
                await self._step()
                self._looked_at = time.monotonic()
            except BusError as error:
                log.debug("lease.unknown", error=str(error))
            if self.active != self._was_active:
                self._was_active = self.active
                log.info("lease.changed", active=self.active, boot=self._boot)
                await self._on_change(self.active)
            await asyncio.sleep(RENEW_S if self.active else LOOK_S)

    async def release(self) -> None:
        """Give it up for good on the way out, so that a standby need not wait."""
        held = self.active
        self._released = True  # before the wait: a renewal may be on its way, and `run` goes on until it is cancelled
        if held:
            await self._bucket.put(KEY, encode(LeaseRecord(boot="")), expected=self._revision, ttl_s=1)

    async def _step(self) -> None:
        asked_at = time.monotonic()
        if self.active:
            try:
                await self._write(self._revision, asked_at)
                return
            except Conflict:
                log.warning("lease.lost")
                self._held_until = 0.0
        value, revision = await self._bucket.get(KEY)
        if self._released:
            return
        if value is None or await self._holder_gone(value):
            try:
                await self._write(revision, asked_at)
            except Conflict:
                self._nobody = 0  # another standby was quicker

    async def _write(self, expected: int, asked_at: float) -> None:
        record = encode(LeaseRecord(boot=self._boot))
        self._revision = await self._bucket.put(KEY, record, expected=expected, ttl_s=TTL_S)
        self._held_until = asked_at + TTL_S - 0.5  # give up before anybody else may begin
        self._nobody = 0

    async def _holder_gone(self, value: bytes) -> bool:
        try:
            holder = decode_lease(value).boot
        except Malformed:
            return True
        if holder in ("", self._boot):
            return True
        try:
            await self._bus.request(subjects.worker("router", holder, "ping"), timeout=1.0)
            self._nobody = 0
        except NoResponders:
            self._nobody += 1
        except Away:
            self._nobody = 0  # slow is not gone
        return self._nobody >= NOBODY_TIMES

    async def _pong(self, message: Message) -> bytes:
        return encode(Pong(node="router", boot=self._boot))
