"""A client's jobs, page by page: a short-lived headers-only pull consumer, so that no prompt is read (DESIGN §3)."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.follower import parse_ack
from libs.common.bus.link import Message
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.contracts.jobs import Completion
from libs.common.contracts.streams import JOBS, NANOSECOND
from libs.common.folder import Entry, Facts, facts_of
from libs.common.states import JobState
from services.gateway.view import row

MAX_LIMIT = 1000
FETCH_S = 5.0
CURSOR = re.compile(r"[0-9]{1,18}")  # a stream sequence
RECORDS_PER_JOB = 3  # new, active, done: at most so many are read for one row


class Page(NamedTuple):
    """`cursor` continues; None when this was the end. A job that moved on between two pages appears again."""

    rows: list[dict[str, Any]]
    cursor: str | None


async def unfinished(bus: Bus, client: str) -> AsyncIterator[tuple[str, Entry]]:
    """The client's jobs that have not ended, each with its newest record; one that begins meanwhile may be missing.

    Raises Failed (UNAVAILABLE).
    """
    start, more = 1, True
    newest: dict[str, _Record] = {}
    while more:
        try:
            records, more = await _fetch(bus, client, start, MAX_LIMIT * RECORDS_PER_JOB)
        except (BusError, TimeoutError) as error:
            raise _away() from error
        for record in records:
            if record.facts is None or isinstance(record.facts, Completion):
                newest.pop(record.job, None)
            else:
                newest[record.job] = record
        more = more and bool(records)
        start = records[-1].sequence + 1 if records else start
    for job, record in newest.items():
        yield job, Entry(record.sequence, record.at_ms, record.facts, b"")


class _Record(NamedTuple):
    job: str
    facts: Facts | None
    sequence: int
    at_ms: int


async def list_jobs(bus: Bus, client: str, *, cursor: str | None, limit: int, state: str | None) -> Page:
    """Oldest first; a page may have fewer rows than `limit`, or none, and yet go on.

    Raises Failed: INVALID_REQUEST, UNAVAILABLE.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise failed(Code.INVALID_REQUEST, f"limit must be 1 to {MAX_LIMIT}", path="limit")
    if state is not None and state not in list(JobState):
        raise failed(Code.INVALID_REQUEST, f"state must be one of {', '.join(JobState)}", path="state")
    if cursor is not None and not CURSOR.fullmatch(cursor):
        raise failed(Code.INVALID_REQUEST, "cursor is not one that a listing gave", path="cursor")
    # Jobs in one state may be rare: a page of them looks through as much as the largest page does.
    looked_through = (limit if state is None else MAX_LIMIT) * RECORDS_PER_JOB
    try:
        records, more = await _fetch(bus, client, int(cursor or 0) + 1, looked_through)
    except (BusError, TimeoutError) as error:
        raise _away() from error
    rows, last = _rows(records, limit, state)
    ended = not more and (not records or last == records[-1].sequence)
    return Page(rows, None if ended else str(last))


def _rows(records: list[_Record], limit: int, state: str | None) -> tuple[list[dict[str, Any]], int]:
    """Up to `limit` rows, one per job, each from the job's newest record among these; and the sequence reached."""
    newest = {record.job: record.sequence for record in records if record.facts is not None}
    rows: list[dict[str, Any]] = []
    last = 0
    for record in records:
        if len(rows) == limit:
            break
        last = record.sequence
        facts = record.facts
        if facts is None or newest[record.job] != record.sequence or (isinstance(facts, Completion) and facts.erased):
            continue
        shown = row(record.job, facts, record.at_ms)
        if state is None or shown["state"] == state:
            rows.append(shown)
    return rows, last


async def _fetch(bus: Bus, client: str, start: int, count: int) -> tuple[list[_Record], bool]:
    """(records in order, whether there are more)."""
    name = f"list-{secrets.token_hex(8)}"
    created = await bus.api(
        f"CONSUMER.CREATE.{JOBS}.{name}",
        {
            "stream_name": JOBS,
            "action": "create",
            "config": {
                "name": name,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": start,
                "ack_policy": "none",
                "filter_subject": subjects.client_records(client),
                "headers_only": True,
                "inactive_threshold": 10 * NANOSECOND,
                "mem_storage": True,
                "num_replicas": 1,
            },
        },
    )
    pending = created["num_pending"]
    wanted = min(count, pending)
    found: list[_Record] = []
    done = asyncio.Event()

    def receive(message: Message) -> None:
        if "Status" in message.headers:
            done.set()
            return
        _, sequence, at_ms, _ = parse_ack(message.reply)
        found.append(_record(message, sequence, at_ms))
        if len(found) >= wanted:
            done.set()

    inbox = bus.new_inbox()
    subscription = await bus.subscribe(inbox, receive)
    try:
        if wanted:
            await bus.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{JOBS}.{name}", b'{"batch":%d,"no_wait":true}' % wanted, reply=inbox
            )
            async with asyncio.timeout(FETCH_S):
                await done.wait()
    finally:
        await subscription.stop()
        await bus.publish(f"$JS.API.CONSUMER.DELETE.{JOBS}.{name}")
    return found, pending > len(found)


def _away() -> Failed:
    return failed(Code.UNAVAILABLE, "the job store does not answer at the moment; try again")


def _record(message: Message, sequence: int, at_ms: int) -> _Record:
    key, _ = subjects.parse_record(message.subject)
    try:
        facts = facts_of(message.subject, message.headers)
    except Malformed:
        facts = None
    return _Record(key.job, facts, sequence, at_ms)
