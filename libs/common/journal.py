"""A job's folder in JOBS: read by its newest record, written by compare-and-set on the whole (DESIGN §3).

`folder.judge` decides what a refused or unconfirmed write means; the `Journal` around it reads, writes, and asks it.
"""

import asyncio
import contextlib
import time

import msgspec

from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away, BusError, Conflict, NoResponders, Unconfirmed
from libs.common.bus.stored import Stored
from libs.common.contracts import subjects
from libs.common.contracts.codec import encode
from libs.common.contracts.headers import EXPECTED_SEQUENCE, EXPECTED_SUBJECT, FACTS, TTL
from libs.common.contracts.jobs import (
    INLINE_LIMIT,
    PART_SIZE,
    CancelMark,
    Parts,
    decode_cancel_mark,
)
from libs.common.contracts.streams import JOBS
from libs.common.contracts.subjects import JobKey, Record
from libs.common.folder import Entry, Facts, Verdict, facts_of, judge

EMPTIED_TTL_S = 60  # an emptied record stays so long, so that slow writers still meet its sequence
LOOK_AGAIN_S = 0.25  # a leader just deposed can be stale: absence is believed after two looks, on replicated streams
GONE_BY_S = 10.0  # how long a write is tried


class Lost(BusError):
    """Somebody else moved the folder on: `newest` is what stands there now (None: it is gone)."""

    def __init__(self, newest: Entry | None) -> None:
        super().__init__(f"another write came first (newest record: {newest.sequence if newest else 'none'})")
        self.newest = newest


class Journal:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    # -- reading -----------------------------------------------------------------------------------------------------

    async def newest(self, key: JobKey, *, absence_twice: bool = True) -> Entry | None:
        """The folder's newest record, from the leader; of an emptied one, `done` if there is one. None: no such job.

        Raises BusError.
        """
        entry = await self._newest_once(key)
        if entry is None and absence_twice and self._bus.replicated:
            await asyncio.sleep(LOOK_AGAIN_S)
            entry = await self._newest_once(key)
        return entry

    async def _newest_once(self, key: JobKey) -> Entry | None:
        stored = await self._bus.last(JOBS, subjects.folder(key))
        if stored is None:
            return None
        entry = _entry(stored)
        if entry.facts is None:
            done = await self._bus.last(JOBS, subjects.record(key, "done"))
            if done is not None and (finished := _entry(done)).facts is not None:
                return finished
        return entry

    async def poll(self, key: JobKey) -> Entry | None:
        """What `done` or else `active` says, by one direct get: cheap, never the prompt, perhaps stale. Raises BusError."""
        found = await self._bus.last_of_each(JOBS, [subjects.record(key, "active"), subjects.record(key, "done")])
        entries = [entry for stored in found if (entry := _entry(stored)).facts is not None]
        return max(entries, key=lambda entry: (entry.final, entry.sequence), default=None)

    async def record_at(self, sequence: int) -> tuple[str, Entry] | None:
        """(subject, record) with that stream sequence, from the leader; None when it is gone. Raises BusError."""
        stored = await self._bus.at(JOBS, sequence)
        return (stored.subject, _entry(stored)) if stored else None

    async def body(self, key: JobKey, entry: Entry) -> bytes | None:
        """The record's body, from its parts if it lies there; None when a part is gone. Raises BusError."""
        parts = entry.facts.parts if entry.facts else None
        if parts is None:
            return entry.body
        pieces = []
        for n in range(parts.count):
            stored = await self._bus.last(JOBS, subjects.part(key, parts.op_id, n))
            if stored is None:
                return None
            pieces.append(stored.data)
        return b"".join(pieces)

    async def body_from(self, key: JobKey, entry: Entry, offset: int) -> bytes | None:
        """The record's body from there on, up to its end or that of one part; None when that part is gone. Raises BusError."""
        parts = entry.facts.parts if entry.facts else None
        if parts is None:
            return entry.body[offset:]
        n, within = divmod(offset, PART_SIZE)
        if n >= parts.count:
            return b""
        stored = await self._bus.last(JOBS, subjects.part(key, parts.op_id, n))
        return None if stored is None else stored.data[within:]

    async def cancel_mark(self, key: JobKey) -> CancelMark | None:
        stored = await self._bus.last(JOBS, subjects.cancel_mark(key))
        facts = stored.headers.get(FACTS) if stored else None
        return decode_cancel_mark(facts) if facts else None

    # -- writing -----------------------------------------------------------------------------------------------------

    async def write(
        self,
        key: JobKey,
        record: Record,
        facts: Facts,
        body: bytes,
        *,
        expected: int,
        ttl: int,
        within: float = GONE_BY_S,
    ) -> int:
        """One transition: the new record's sequence, if this write is the one that stands.

        Raises Lost (fenced, or somebody was first), Full (try later), Unconfirmed or Away (not known), Refused.
        Saying it twice with the same op_id is harmless: the second finds itself in the folder.
        """
        if len(body) > INLINE_LIMIT:
            facts = msgspec.structs.replace(facts, parts=await self._write_parts(key, facts.op_id, body, ttl))
            body = b""
        headers = {
            FACTS: encode(facts).decode(),
            EXPECTED_SEQUENCE: str(expected),
            EXPECTED_SUBJECT: subjects.folder(key),
            TTL: str(ttl),
        }
        give_up = time.monotonic() + within
        while True:
            failure: BusError
            try:
                return (await self._bus.append(subjects.record(key, record), body, headers=headers)).sequence
            except (Conflict, Unconfirmed, NoResponders, Away) as error:
                failure = error
            if not isinstance(failure, NoResponders):
                try:
                    newest = await self._newest_once(key)
                    verdict, sequence = judge(newest, op_id=facts.op_id, expected=expected)
                    if verdict is Verdict.LANDED:
                        return sequence
                    if verdict is Verdict.LOST:
                        if newest is None and self._bus.replicated:
                            newest = await self.newest(key)
                            if newest is not None:
                                continue
                        raise Lost(newest)
                except Lost:
                    raise
                except BusError as error:
                    failure = error
            if time.monotonic() >= give_up:
                raise Unconfirmed(str(failure)) from failure
            await asyncio.sleep(LOOK_AGAIN_S)

    async def mark_cancelled(self, key: JobKey, mark: CancelMark, *, ttl: int) -> None:
        """Durable wish to cancel; the router acts on it, now or after a restart. Raises BusError."""
        await self._append_surely(subjects.cancel_mark(key), b"", {FACTS: encode(mark).decode(), TTL: str(ttl)})

    async def empty(self, key: JobKey, record: Record, sequence: int) -> None:
        """Replace a record of a finished job by nothing, for space and privacy; whoever came first is fine."""
        headers = {EXPECTED_SEQUENCE: str(sequence), TTL: str(EMPTIED_TTL_S)}
        with contextlib.suppress(Conflict):
            await self._bus.append(subjects.record(key, record), b"", headers=headers)

    async def empty_parts(self, key: JobKey, op_id: str, size: int) -> None:
        """Of a write that surely did not come to stand: its parts give back their room, now and not when their job would have
        gone. Not by a purge, which only the router may. Raises BusError."""
        for n in range(-(-size // PART_SIZE)):
            await self._bus.append(subjects.part(key, op_id, n), b"", headers={TTL: "1"})

    async def purge(self, stream: str, subject: str) -> None:
        await self._bus.api(f"STREAM.PURGE.{stream}", {"filter": subject})

    async def _write_parts(self, key: JobKey, op_id: str, body: bytes, ttl: int) -> Parts:
        pieces = [body[at : at + PART_SIZE] for at in range(0, len(body), PART_SIZE)]
        for n, piece in enumerate(pieces):
            subject = subjects.part(key, op_id, n)
            await self._append_surely(subject, piece, {TTL: str(ttl)})
        return Parts(op_id=op_id, count=len(pieces), size=len(body))

    async def _append_surely(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """For messages that may be stored twice without harm: tried until acked, for a while."""
        give_up = time.monotonic() + GONE_BY_S
        while True:
            try:
                await self._bus.append(subject, payload, headers=headers)
                return
            except (Unconfirmed, NoResponders, Away):
                if time.monotonic() >= give_up:
                    raise
                await asyncio.sleep(LOOK_AGAIN_S)


def _entry(stored: Stored) -> Entry:
    return Entry(stored.sequence, stored.at_ms, facts_of(stored.subject, stored.headers), stored.data)
