"""One account's ledger, as one gateway writes it: changes that come together share a compare-and-set (group commit).

Permits of a lease are handed out here without NATS. A refusal stands on what the bucket's leader said, not on what this
gateway remembers; it is believed for at most RECHECK_S, so that who is refused again and again costs a read a second.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from libs.common.bus.failures import Away, BusError, Conflict, NoResponders
from libs.common.contracts.clients import Limits
from libs.common.contracts.codec import encode
from libs.common.ids import new_op_id
from services.gateway.limits import ledger, metrics, reader_slots, rolling, stream_slots
from services.gateway.limits.ledger import Ledger
from services.gateway.limits.reader_slots import Place
from services.gateway.limits.rolling import LEASE_MS, Instant, Wait

COMMIT_S = 5.0  # then the caller hears that nobody could be asked
AGAIN_S = 0.05
CONFLICT_S = 0.002  # times the number of tries, at random: gateways that meet at one ledger go apart
# Between two commits while others write, too: who has just written knows the ledger, and would be faster than all for ever.
TURN_S = 0.001
OTHERS_S = 1.0
RECHECK_S = 1.0

T = TypeVar("T")
Apply = Callable[[Ledger, Instant], tuple[T, bool]]


class Bucket(Protocol):
    async def get(self, key: str) -> tuple[bytes | None, int]: ...
    async def put(self, key: str, value: bytes, *, expected: int | None = None, ttl_s: int | None = None) -> int: ...


class Clock(Protocol):
    async def now(self) -> Instant: ...


class _Change(NamedTuple):
    """`apply` None: one permit for a request."""

    apply: Apply[Any] | None
    answer: "asyncio.Future[Any]"
    give_up: float


class _Lease(NamedTuple):
    id: str
    permits: int
    until: float  # monotonic: nothing is handed out after it


class Keeper:
    """`holder`: this gateway's name in the ledger, another one after each start. `limits`: as last seen by a caller."""

    def __init__(
        self,
        bucket: Bucket,
        clock: Clock,
        account: str,
        client: str,
        holder: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.account = account
        self.client = client
        self.limits = Limits()
        self.ledger: Ledger | None = None  # as last read or written
        self.used_at = monotonic()
        self.streams = 0  # open here
        self._bucket = bucket
        self._clock = clock
        self._holder = holder
        self._monotonic = monotonic
        self._revision: int | None = None  # of `ledger`; None: it has to be read
        self._waiting: list[_Change] = []
        self._committing: asyncio.Task[None] | None = None
        self._lease: _Lease | None = None
        self._spent = 0  # of the lease
        self._refused: tuple[int, int, float] | None = None  # (limit, until_ms, believed until)
        self._slots = 0  # of streams: what the ledger holds for this gateway, at least
        self._slots_said_at = 0.0
        self._met_at = float("-inf")  # another gateway at this ledger

    # -- requests ------------------------------------------------------------------------------------------------------

    def used(self, limits: Limits) -> None:
        """Somebody with these limits asks."""
        self.limits, self.used_at = limits, self._monotonic()

    async def take(self, limits: Limits) -> Wait | None:
        """A permit for one request, or when there may be one. Raises BusError."""
        self.used(limits)
        if self.left:
            self._spent += 1
            return None
        if self._refused and self._refused[0] == limits.requests_per_minute and self.used_at < self._refused[2]:
            return Wait(self._refused[1])
        waiting: Wait | None = await self._asked(None)
        return waiting

    @property
    def left(self) -> int:
        """Permits of the lease that may still be handed out."""
        if self._lease is None or self._monotonic() >= self._lease.until:
            return 0
        return self._lease.permits - self._spent

    # -- everything else -----------------------------------------------------------------------------------------------

    async def change(self, apply: Apply[T]) -> T:
        """What `apply` says of a draft, stored if it changed it (the second word). It may be called several times, also on
        a draft that holds its change already. Raises BusError."""
        outcome: T = await self._asked(apply)
        return outcome

    async def refresh(self) -> None:
        """Reads the ledger anew. Raises BusError."""
        self._revision = None
        await self.change(lambda draft, now: (None, False))

    async def open_stream(self, limits: Limits) -> Wait | None:
        """A slot, or None of them is free. Raises BusError."""
        self.used(limits)
        if self.streams < self._slots:
            self.streams += 1
            return None

        def take(draft: Ledger, now: Instant) -> tuple[Wait | None, bool]:
            room = limits.open_streams - len(draft.readers)
            if stream_slots.take(draft.streams, self._holder, room, now):
                return None, True
            return Wait(0), False

        refused = await self.change(take)
        if refused is None:
            self.streams += 1
        return refused

    def close_stream(self) -> None:
        self.used_at = self._monotonic()
        self.streams -= 1

    async def say_streams(self) -> None:
        """How many are open here, when others should know: a slot is free, or the last word is old. Raises BusError."""
        is_due = self._monotonic() - self._slots_said_at >= stream_slots.RENEW_S
        if self._slots == self.streams and not (self._slots and is_due):
            return

        def say(draft: Ledger, now: Instant) -> tuple[None, bool]:
            stream_slots.hold(draft.streams, self._holder, self.streams, now)
            self._slots = min(self._slots, self.streams)  # until it is stored: what is given back is not used any more
            return None, True

        await self.change(say)

    # -- streams that are read over NATS -------------------------------------------------------------------------------

    async def take_reader(self, limits: Limits, reader: str, wait_ms: int) -> Place:
        """Its stream begins or goes on, if there is a slot for it. One that was stored without an ack is kept. Raises
        BusError."""

        def take(draft: Ledger, now: Instant) -> tuple[Place, bool]:
            return reader_slots.take(draft.readers, reader, wait_ms, _room(draft, limits), now)

        self.used(limits)
        return await self.change(take)

    async def drop_reader(self, reader: str) -> None:
        """Twice is once. Raises BusError."""
        await self.change(lambda draft, now: (None, reader_slots.leave(draft.readers, reader)))

    @property
    def is_idle(self) -> bool:
        is_open = self.ledger is not None and bool(self.ledger.tokens.open)
        return not (self._waiting or self._committing or self._slots or self.streams or self.left or is_open)

    # -- commits -------------------------------------------------------------------------------------------------------

    async def _asked(self, apply: Apply[Any] | None) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Change(apply, answer, self._monotonic() + COMMIT_S))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all(), name=f"limits.{self.account}")
        return await answer

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                changes, self._waiting = self._waiting, []
                try:
                    await self._commit(changes)
                except Exception as error:  # noqa: BLE001  # whoever asked raises it
                    for change in changes:
                        if not change.answer.done():
                            change.answer.set_exception(error)
                if self._waiting and self._monotonic() - self._met_at < OTHERS_S:
                    await asyncio.sleep(TURN_S)
        finally:
            self._committing = None

    async def _commit(self, changes: list[_Change]) -> None:
        give_up, tries = min(change.give_up for change in changes), 0
        while True:
            tries += 1
            failure: BusError
            try:
                if await self._try(changes):
                    return
                failure, pause = Away(f"the limits of {self.account} keep changing"), CONFLICT_S * tries
            except (Away, NoResponders) as error:
                self._revision = None
                failure, pause = error, AGAIN_S
            if self._monotonic() >= give_up:
                raise failure
            await asyncio.sleep(pause * random.random())

    async def _try(self, changes: list[_Change]) -> bool:
        """One compare-and-set for all of them; False: somebody else was faster, or a refusal has to be looked at again."""
        was_read = self._revision is None
        if self.ledger is None or self._revision is None:
            value, revision = await self._bucket.get(self.account)
            self.ledger, self._revision = ledger.read(value), revision
        now, began = await self._clock.now(), self._monotonic()
        draft = ledger.draft(self.ledger, now, self.limits)
        draft.client = self.client
        takers = [change for change in changes if change.apply is None]
        lease = self._lease_anew(draft, len(takers), now, began)
        outcomes = [(change, *change.apply(draft, now)) for change in changes if change.apply is not None]
        granted = lease.permits if lease else 0
        if not was_read and (granted < len(takers) or any(not changed for _, _, changed in outcomes)):
            self._revision = None
            return False
        if granted or any(changed for _, _, changed in outcomes):
            try:
                self._revision = await self._bucket.put(
                    self.account, encode(draft), expected=self._revision, ttl_s=ledger.TTL_S
                )
            except Conflict:
                self._revision, self._met_at = None, self._monotonic()
                return False
            metrics.commits.inc()
            if takers:
                self._lease, self._spent = lease, 0
            if lease:
                metrics.leases.inc()
            if held := draft.streams.get(self._holder):
                self._slots_said_at = began if held.at_ms == now.latest else self._slots_said_at
            self._slots = held.streams if held else 0
            self.ledger = draft
        self._answer(takers, lease, draft)
        for change, outcome, _ in outcomes:
            if not change.answer.done():
                change.answer.set_result(outcome)
        return True

    def _lease_anew(self, draft: Ledger, takers: int, now: Instant, began: float) -> _Lease | None:
        """Reports the last lease, too: it is spent or over, or nobody would wait, so nothing more is handed out of it."""
        if not takers:
            return None
        rolling.close(draft.requests, self._holder, self._lease.id if self._lease else "", self._spent)
        limit, lease_id = self.limits.requests_per_minute, new_op_id()
        count = rolling.lease(
            draft.requests, self._holder, lease_id, limit=limit, count=rolling.wanted(limit, takers), now=now
        )
        return _Lease(lease_id, count, began + LEASE_MS / 1000) if count else None

    def _answer(self, takers: list[_Change], lease: _Lease | None, draft: Ledger) -> None:
        """The permits to those who wait for them; the others hear when there is more. If the ack took longer than a lease
        lasts, they go on waiting."""
        until = rolling.free_at(draft.requests, self.limits.requests_per_minute) or 0
        refused = False
        for change in takers:
            if change.answer.done():
                continue
            if self.left:
                self._spent += 1
                change.answer.set_result(None)
            elif lease is not None and self._spent < lease.permits:
                self._waiting.append(change)
            else:
                refused = True
                change.answer.set_result(Wait(until))
        if refused:
            self._refused = (self.limits.requests_per_minute, until, self._monotonic() + RECHECK_S)


def _room(draft: Ledger, limits: Limits) -> int:
    """For how many that read over NATS, those that do so included."""
    if not limits.open_streams:
        return reader_slots.MAX
    return min(reader_slots.MAX, limits.open_streams - stream_slots.total(draft.streams))
