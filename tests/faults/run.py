"""One fault run: fleet up, load and faults, rest, audit; what was seen goes into a Book."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from tests.faults import plan
from tests.faults.breaking import Breaker, come_to_rest, note_logs, watch_readiness
from tests.faults.clients import Client
from tests.faults.fleet import Fleet, running_fleet
from tests.faults.plan import Script, Strike
from tests.faults.records import Book

SETTLE_S = 1.0  # of load before the first fault
AUDITS_AT_ONCE = 16


class Wanted(NamedTuple):
    seed: int
    jobs: int
    faults: int
    seconds: float  # of load
    servers: int = 1
    deadline_s: float = 60.0
    longest_stop_s: float = 12.0
    hangs: bool = True
    long_cuts: bool = True  # of more than 30 s, now and then
    clients: int = 150  # at once; more wait for their turn
    rest_s: float = 90.0  # for what is left to end
    must_have: bool = False
    only: tuple[str, ...] = ()  # roles that are struck; () for all


async def fault_run(wanted: Wanted, folder: Path, book: Book, say: Callable[[str], None] = lambda _: None) -> None:
    """Ends every process it started, whatever happens."""
    async with running_fleet(folder, book, servers=wanted.servers) as fleet:
        say(f"fleet is up after {book.now:.1f} s")
        watching = asyncio.create_task(watch_readiness(fleet, book), name="readiness")
        try:
            began = book.now
            strikes = _strikes(wanted, fleet, began)
            breaking = asyncio.create_task(Breaker(fleet, book).carry_out(strikes), name="breaking")
            try:
                await _load(wanted, fleet, book, began, say)
                await breaking
            finally:
                breaking.cancel()
                await asyncio.gather(breaking, return_exceptions=True)
            say(f"load and faults are over after {book.now:.1f} s")
            await come_to_rest(fleet, book, within=wanted.rest_s)
            say(f"at rest after {book.now:.1f} s")
            await _audit(fleet, book)
            say(f"audited after {book.now:.1f} s")
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            note_logs(fleet, book)


def _strikes(wanted: Wanted, fleet: Fleet, began: float) -> list[Strike]:
    names = {role: fleet.names[role] for role in wanted.only} if wanted.only else fleet.names
    until_s = began + wanted.seconds * 0.95
    made = plan.strikes(
        wanted.seed, wanted.faults, from_s=began + SETTLE_S, until_s=until_s, names=names,
        longest_stop_s=wanted.longest_stop_s, hangs=wanted.hangs, long_cuts=wanted.long_cuts,
    )  # fmt: skip
    if wanted.must_have:
        made += plan.must_have(wanted.seed, fleet.names, at_s=began + SETTLE_S)
    return made


async def _load(wanted: Wanted, fleet: Fleet, book: Book, began: float, say: Callable[[str], None]) -> None:
    """Jobs come at an even rate, whatever becomes of those before; when too many are open the next waits."""
    room = asyncio.Semaphore(wanted.clients)
    patience_s = wanted.deadline_s + 60

    async def one(script: Script) -> None:
        try:
            await Client(script, fleet.gateways, fleet.api_key, fleet.http, book, patience_s=patience_s).play()
        finally:
            room.release()

    told = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for n in range(wanted.jobs):
            await asyncio.sleep(max(0.0, began + n * wanted.seconds / wanted.jobs - book.now))
            await room.acquire()
            group.create_task(one(plan.script(wanted.seed, n, deadline_s=wanted.deadline_s)))
            if time.monotonic() - told > 15:
                told = time.monotonic()
                say(f"{book.now:.0f} s: {n} jobs begun")


async def _audit(fleet: Fleet, book: Book) -> None:
    """What stands at the end, of every job that somebody was told of; and what an undisturbed node would have said."""
    asked: dict[str, int] = {}
    for record in book.records:
        if record["what"] == "call" and record["op"] in ("submit", "chat") and record["status"] in (200, 202):
            asked.setdefault(record["job"], record["n"])
    scripts = {record["n"]: record for record in book.records if record["what"] == "script"}
    headers = {"Authorization": f"Bearer {fleet.api_key}"}
    room = asyncio.Semaphore(AUDITS_AT_ONCE)

    async def one(job: str, n: int) -> None:
        async with room:
            view: dict[str, Any] | None = None
            url = f"{fleet.gateways[n % 2]}/jobs/{job}"
            async with fleet.http.get(url, headers=headers, timeout=aiohttp.ClientTimeout(total=30)) as answer:
                with contextlib.suppress(ValueError, aiohttp.ContentTypeError):
                    view = await answer.json(content_type=None)
                book.note("audit", job=job, status=answer.status, view=view)
            if view and view.get("state") == "succeeded" and view["kind"] != "embed":
                await _expect(fleet, book, job, n, scripts[n])

    await asyncio.gather(*(one(job, n) for job, n in asked.items()))
    await _list(fleet, book, headers)


async def _expect(fleet: Fleet, book: Book, job: str, n: int, script: dict[str, Any]) -> None:
    prompt, chat = plan.prompt(n, script["tokens"]), script["chat"]
    body = {"model": script["model"], "stream": False}
    body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    url = f"{fleet.oracle}/api/{'chat' if chat else 'generate'}"
    async with fleet.http.post(url, json=body, timeout=aiohttp.ClientTimeout(total=30)) as answer:
        said = await answer.json(content_type=None)
    book.note("expected", job=job, text=said["message"]["content"] if chat else said["response"])


async def _list(fleet: Fleet, book: Book, headers: dict[str, str]) -> None:
    cursor: str | None = None
    while True:
        params = {"limit": "200"} | ({"cursor": cursor} if cursor else {})
        async with fleet.http.get(f"{fleet.gateways[0]}/jobs", params=params, headers=headers) as answer:
            page = await answer.json()
        for row in page["jobs"]:
            book.note("listed", job=row["id"], state=row["state"])
        cursor = page["cursor"]
        if not cursor or not page["jobs"]:
            return
