"""Checkpoints of the audit trail: every minute, while there is something new, auth signs how far each chain has come.

All replicas write one chain of checkpoints by compare-and-set: who loses takes the other's as its own. A statement covers what
stands in the stream up to `upto`; the next one begins there, also after a restart.

The newest statement is also kept in the bucket `signing`: a stream that lost its end, with the checkpoints there, would else look
like one that never was longer. That is told in the trail as `trail.cut`.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import structlog
from joserfc.jwk import ECKey

from libs.common.audit import Audit, Result
from libs.common.audit.chain import CHECKPOINTS, CUT, writer_of
from libs.common.audit.heads import Heads
from libs.common.audit.lines import Entry
from libs.common.audit.statements import open_statement, sign
from libs.common.audit.verify import checkpoint_record, next_checkpoint
from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError, Conflict
from libs.common.bus.follower import Follower
from libs.common.bus.stored import Stored
from libs.common.contracts.audit import Statement, decode_audit
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.headers import EXPECTED_SEQUENCE
from libs.common.contracts.streams import AUDIT, SIGNING
from services.auth import metrics
from services.auth.keyring import Keyring

log = structlog.get_logger()

KEPT = "checkpoint"  # its key
EVERY_S = 60.0
LOOK_S = 1.0
OVERDUE_S = 600.0  # news that no replica has signed for so long: something is wrong
SUBJECT = f"audit.{CHECKPOINTS}"


class Kept:
    """The newest statement, beside the trail."""

    def __init__(self, bus: Bus) -> None:
        self._bucket = Bucket(bus, SIGNING)

    async def read(self) -> str:
        """Signed; empty when there is none. Raises BusError."""
        return ((await self._bucket.get(KEPT))[0] or b"").decode("ascii", "replace")

    async def replace(self, signed: str, is_older: Callable[[str], Awaitable[bool]]) -> None:
        """Unless `is_older` says that what is kept is to stay. Raises BusError."""
        while True:
            found, revision = await self._bucket.get(KEPT)
            if found is not None and await is_older(found.decode("ascii", "replace")):
                return
            with contextlib.suppress(Conflict):
                await self._bucket.put(KEPT, signed.encode(), expected=revision)
                return


class Checkpoints:
    """`run` must be running."""

    def __init__(self, bus: Bus, keyring: Keyring, audit: Audit, *, clock: Callable[[], float] = time.time) -> None:
        self._bus = bus
        self._keyring = keyring
        self._audit = audit
        self._kept = Kept(bus)
        self._clock = clock
        self._heads = Heads()
        self._newest: Entry | None = None  # of the checkpoints' chain
        self._follower: Follower | None = None
        self._made_at = time.monotonic()
        self._start = 0

    def check(self) -> str | None:
        if self._follower is None:
            return "the audit trail's newest checkpoint is not known yet"
        if self._heads.has_news and time.monotonic() - self._made_at > OVERDUE_S:
            return f"the audit trail has had no checkpoint for {OVERDUE_S / 60:g} minutes"
        return self._follower.problem()

    async def run(self) -> None:
        await self._begin()
        assert self._follower is not None
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follower.run(), name="checkpoints.follower")
            tasks.create_task(self._keep_making(), name="checkpoints.making")

    async def last(self, upto: int, *, within: float = 3.0) -> None:
        """One more before this replica ends, about what stands in the stream up to `upto`."""
        if self._follower is not None:
            await self._follower.reached(upto, within=within)
        await self.make()

    async def make(self) -> bool:
        """False: nothing is new, or it could not be signed or stored; the next attempt says the same and more."""
        key = self._signing_key()
        if key is None or not self._heads.has_news or self._follower is None or not self._follower.fresh:
            return False
        since, upto, heads = self._heads.statement_part()
        drafted = Statement(n=1, at_ms=int(self._clock() * 1000), since=since, upto=upto, heads=heads)
        statement, link = next_checkpoint(self._newest, drafted)
        signed = sign(statement, key)
        data = encode(checkpoint_record(statement, link.sequence, signed))
        try:
            ack = await self._bus.append(SUBJECT, data, headers={EXPECTED_SEQUENCE: str(link.sequence)})
        except Conflict:
            return False  # another replica was first, or its ack was lost: either comes by the follower
        except BusError as error:
            log.warning("checkpoint.not_stored", error=str(error))
            return False
        self._seen(Entry(ack.sequence, SUBJECT, statement.at_ms, data), statement)
        metrics.checkpoints.inc()
        log.info("checkpoint.made", n=statement.n, heads=len(heads), upto=upto)
        try:
            await self._keep(statement.n, signed)
        except BusError as error:
            log.warning("checkpoint.not_kept", error=str(error))
        return True

    async def _keep(self, n: int, signed: str) -> None:
        async def is_older(kept: str) -> bool:
            """Was there a later checkpoint than ours? It must stand in the trail, made by another replica since."""
            found = open_statement(kept, self._keyring.public)
            if not found.checked or found.statement is None or kept == signed or found.statement.n < n:
                return False
            newest = await self._bus.last(AUDIT, SUBJECT)
            with contextlib.suppress(Malformed):
                there = decode_audit(newest.data) if newest is not None else None
                if there is not None and (there.n > found.statement.n or there.statement == kept):
                    return True
            log.error("trail.cut", n=found.statement.n, upto=found.statement.upto)
            reason = f"checkpoint {found.statement.n} is not there any more: the trail reached sequence {found.statement.upto}"
            self._audit.record(CUT, Result.FAILED, target=str(found.statement.upto), reason=reason)
            return False

        await self._kept.replace(signed, is_older)

    async def _begin(self) -> None:
        """Everything up to the newest checkpoint's `upto` is signed already, if its signature is one of ours."""
        while True:
            try:
                newest = await self._bus.last(AUDIT, SUBJECT)
                while newest is not None and self._keyring.check() is not None:  # noqa: ASYNC110  # it tells nobody
                    await asyncio.sleep(LOOK_S)
                break
            except BusError as error:
                log.warning("checkpoint.newest_unread", error=str(error))
                await asyncio.sleep(LOOK_S)
        statement = self._statement(newest.data) if newest else None
        self._start = statement.upto if statement else 0
        self._follower = Follower(
            self._bus, AUDIT, ["audit.>"], self._record, on_reset=self._forget, from_sequence=self._start + 1
        )

    async def _keep_making(self) -> None:
        due = time.monotonic() + EVERY_S
        while True:
            await asyncio.sleep(LOOK_S)
            if time.monotonic() >= due or self._heads.is_full:
                await self.make()
                due = time.monotonic() + EVERY_S

    def _forget(self) -> None:
        """Before the first record, and when the stream turns out to be another one."""
        self._heads.reset(self._start)
        self._newest, self._start = None, 0

    def _record(self, stored: Stored) -> None:
        if writer_of(stored.subject) == CHECKPOINTS:
            entry = Entry(stored.sequence, stored.subject, stored.at_ms, stored.data)
            if self._newest is None or entry.sequence > self._newest.sequence:
                self._seen(entry, self._statement(stored.data))
        self._heads.add(stored.subject, stored.sequence, stored.data)

    def _seen(self, entry: Entry, statement: Statement | None) -> None:
        self._newest = entry
        if statement is None:
            log.error("checkpoint.foreign", sequence=entry.sequence)  # `arriero audit verify` names it
            return
        self._made_at = time.monotonic()
        self._heads.told(statement.upto)

    def _statement(self, data: bytes) -> Statement | None:
        """Of a checkpoint that one of our keys has signed."""
        try:
            opened = open_statement(decode_audit(data).statement, self._keyring.witnesses)
        except Malformed:
            return None
        return opened.statement if opened.checked else None

    def _signing_key(self) -> ECKey | None:
        keys = self._keyring.active.keys if self._keyring.active else []
        return keys[0] if keys and isinstance(keys[0], ECKey) else None
