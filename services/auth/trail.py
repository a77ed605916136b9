"""`GET /audit`: the audit trail, page by page, with scope audit:read. Its bytes are exactly those that were stored.

| parameter        | meaning                                                                                  |
|------------------|------------------------------------------------------------------------------------------|
| `after`          | only what stands behind this sequence: the `upto` of the page before                     |
| `limit`          | records looked at for this page, at most 5,000                                           |
| `since`, `until` | times (RFC 3339): stored at or after, stored before                                      |
| `action`         | such as `client.create`; `client.*` takes all of them                                    |
| `actor`          | a client's id                                                                            |
| `tail`           | instead of `after`: the newest so many that fit                                          |
"""

from collections.abc import AsyncIterator
from datetime import datetime
from fnmatch import fnmatchcase
from typing import NamedTuple

from starlette.datastructures import QueryParams

from libs.common.audit.lines import End, Entry, Trail, line_of
from libs.common.bus.connection import Bus
from libs.common.bus.stored import Stored
from libs.common.contracts.audit import decode_audit
from libs.common.contracts.codec import Malformed
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.contracts.streams import AUDIT
from services.auth.checkpoints import Kept
from services.auth.keyring import Keyring

LIMIT, MAX_LIMIT = 1_000, 5_000
MAX_TAIL = 1_000
MAX_TEXT = 200
MAX_SEQUENCE = 1 << 62
BATCH = 250
LOOK_BACK = 100_000  # sequences that `tail` searches

_KNOWN = {"after", "limit", "since", "until", "action", "actor", "tail"}


class Asked(NamedTuple):
    after: int = 0
    limit: int = LIMIT
    since_ms: int | None = None
    until_ms: int | None = None
    action: str = ""
    actor: str = ""
    tail: int | None = None

    def wants(self, data: bytes) -> bool:
        """What cannot be read is always shown."""
        if not self.action and not self.actor:
            return True
        try:
            record = decode_audit(data)
        except Malformed:
            return True
        fits = not self.action or fnmatchcase(record.action, self.action)
        return fits and self.actor in ("", record.actor)


def read_query(query: QueryParams) -> Asked:
    """Raises Failed (INVALID_REQUEST)."""
    if unknown := sorted(set(query) - _KNOWN):
        raise _invalid(unknown[0][:50], f"there are {', '.join(sorted(_KNOWN))}")
    tail = query.get("tail")
    if tail is not None and "after" in query:
        raise _invalid("tail", "give it or after, not both")
    return Asked(
        after=_number(query, "after", 0, MAX_SEQUENCE),
        limit=max(1, _number(query, "limit", LIMIT, MAX_LIMIT)),
        since_ms=_time(query, "since"),
        until_ms=_time(query, "until"),
        action=_text(query, "action"),
        actor=_text(query, "actor"),
        tail=None if tail is None else _number(query, "tail", 0, MAX_TAIL),
    )


class AuditTrail:
    def __init__(self, bus: Bus, keyring: Keyring) -> None:
        self._bus = bus
        self._keyring = keyring
        self._kept = Kept(bus)

    async def page(self, asked: Asked) -> AsyncIterator[bytes]:
        """The lines of a page, as `libs.common.audit.lines` has them. What can be refused is, before the first is given:
        raises BusError. Later only the line at the end can be missing."""
        kept = await self._kept.read()  # first: what it speaks of is in the stream by then
        state = (await self._bus.api(f"STREAM.INFO.{AUDIT}"))["state"]
        first, last = int(state["first_seq"]), int(state["last_seq"])
        expired = max(0, first - 1)
        after = max(asked.after, expired)
        if asked.since_ms is not None:
            after = max(after, await self._first_at(asked.since_ms, first, last) - 1)
        found: list[Entry] = []
        if asked.tail is not None:
            found = await self._newest(asked, after, last)
            after = found[0].sequence - 1 if found else last
        trail = Trail(
            after=after,
            last=last,
            expired=expired,
            since_ms=asked.since_ms,
            until_ms=asked.until_ms,
            kept=kept,
            keys=[dict(key.as_dict(private=False)) for key in self._keyring.witnesses.values()],
        )
        return self._lines(asked, trail, found)

    async def _lines(self, asked: Asked, trail: Trail, newest: list[Entry]) -> AsyncIterator[bytes]:
        yield line_of(trail)
        if asked.tail is not None:
            if newest:
                yield b"".join(map(line_of, newest))
            yield line_of(End(upto=trail.last))
            return
        upto, looked, over = trail.after, 0, False
        while upto < trail.last and looked < asked.limit and not over:
            entries = await self._batch(upto + 1, min(BATCH, asked.limit - looked), trail.last)
            if not entries:
                upto = trail.last  # nothing is there any more, up to the end
            lines = []
            for entry in entries:
                if asked.until_ms is not None and entry.stored_ms >= asked.until_ms:
                    over = True
                    break
                looked += 1
                upto = entry.sequence
                if asked.wants(entry.data):
                    lines.append(line_of(entry))
            if lines:
                yield b"".join(lines)
        yield line_of(End(upto=upto, more=upto < trail.last and not over))

    async def _batch(self, sequence: int, count: int, last: int) -> list[Entry]:
        """In order; none beyond `last`. From any replica, and where that does not have them yet, from the leader."""
        found = [_entry(stored) for stored in await self._bus.from_sequence(AUDIT, "audit.>", sequence, batch=count)]
        if not found:
            for at in range(sequence, min(last, sequence + count) + 1):
                if (stored := await self._bus.at(AUDIT, at)) is not None:
                    return [_entry(stored)]
        return [entry for entry in found if entry.sequence <= last]

    async def _newest(self, asked: Asked, after: int, last: int) -> list[Entry]:
        found: list[Entry] = []
        upto = last
        while upto > max(after, last - LOOK_BACK) and len(found) < (asked.tail or 0):
            begin = max(after, upto - BATCH)
            entries = [e for e in await self._batch(begin + 1, upto - begin, upto) if asked.wants(e.data)]
            until = asked.until_ms
            found = [e for e in entries if until is None or e.stored_ms < until] + found
            upto = begin
        return found[len(found) - min(len(found), asked.tail or 0) :]

    async def _first_at(self, since_ms: int, first: int, last: int) -> int:
        """The sequence of the first record that was stored at or after that time; behind the last one when there is none."""
        low, high = first, last + 1
        while low < high:
            middle = (low + high) // 2
            stored: Stored | None = None
            at = middle
            while at < high and (stored := await self._bus.at(AUDIT, at)) is None:
                at += 1
            if stored is None:
                high = middle
            elif stored.at_ms < since_ms:
                low = at + 1
            else:
                high = middle
        return low


def _entry(stored: Stored) -> Entry:
    return Entry(stored.sequence, stored.subject, stored.at_ms, stored.data)


def _number(query: QueryParams, name: str, default: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise _invalid(name, f"a number up to {most}")
    return int(text)


def _text(query: QueryParams, name: str) -> str:
    text = query.get(name, "")
    if len(text) > MAX_TEXT:
        raise _invalid(name, f"a text of at most {MAX_TEXT} characters")
    return text


def _time(query: QueryParams, name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise _invalid(name, "a time with its zone, such as 2026-11-23T12:00:00Z")
    return int(at.timestamp() * 1000)


def _invalid(name: str, what: str) -> Failed:
    return failed(Code.INVALID_REQUEST, f"{name}: {what}.", path=name)
