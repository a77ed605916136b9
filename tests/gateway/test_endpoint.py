"""The frame around every route, without a server."""

import asyncio
import json
from typing import Any

import pytest

from libs.common.contracts.clients import Principal, Scope
from libs.common.edge.front import ABORT
from services.gateway.endpoint import Endpoint
from services.gateway.http import Exchange
from services.gateway.route import Reach, RouteSpec
from services.gateway.sessions import Sessions
from tests.support.waiting import eventually


class Anybody:
    """Credentials that let everybody in."""

    async def principal(self, headers: object, address: str) -> Principal:
        return Principal(client="c", scopes=frozenset(Scope))


async def cut_off(*, started: bool) -> list[dict[str, Any]]:
    """What was sent by a request that was still working when the server ended it."""
    sent: list[dict[str, Any]] = []
    working = asyncio.Event()

    async def handler(exchange: Exchange, principal: Principal) -> None:
        if started:
            await exchange.start_events()
        working.set()
        await asyncio.Event().wait()

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    spec = RouteSpec("GET", "/jobs/{id}", Scope.JOBS_READ, Reach.OWN_JOBS, handler)
    scope = {"type": "http", "method": "GET", "path": "/jobs/x", "headers": []}
    request = asyncio.create_task(Endpoint(spec, Anybody(), Sessions())(scope, receive, send))  # type: ignore[arg-type]
    await working.wait()
    request.cancel()
    if started:
        with pytest.raises(asyncio.CancelledError):
            await request
    else:
        await request
    return sent


async def test_a_request_that_the_end_of_the_process_cuts_off_is_told_to_try_another_gateway() -> None:
    """The server would answer a bare 500 for it."""
    start, body = await cut_off(started=False)
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert json.loads(body["body"])["code"] == "draining"


async def test_a_stream_that_the_end_of_the_process_cuts_off_gets_nothing_added() -> None:
    assert [message["type"] for message in await cut_off(started=True)] == ["http.response.start"]


class Stuck:
    """A connection whose client takes nothing after the first piece."""

    def __init__(self) -> None:
        self.aborted = asyncio.Event()
        self.sent = 0

    def abort(self) -> None:
        self.aborted.set()

    async def send(self, message: dict[str, Any]) -> None:
        self.sent += 1
        if self.sent > 2:
            await asyncio.Event().wait()

    async def receive(self) -> dict[str, Any]:
        await self.aborted.wait()
        return {"type": "http.disconnect"}


async def test_a_revoked_stream_is_closed_also_when_its_client_reads_nothing() -> None:
    stuck, sessions = Stuck(), Sessions()

    async def handler(exchange: Exchange, principal: Principal) -> None:
        await exchange.start_events()
        while True:
            await exchange.write(b": more\n\n")

    spec = RouteSpec("GET", "/jobs/{id}/stream", Scope.JOBS_READ, Reach.OWN_JOBS, handler)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/jobs/x/stream",
        "headers": [],
        "extensions": {ABORT: stuck.abort},
    }
    request = asyncio.create_task(Endpoint(spec, Anybody(), sessions)(scope, stuck.receive, stuck.send))  # type: ignore[arg-type]
    await eventually(lambda: stuck.sent == 3)
    assert sessions.end_lapsed(["c"], lambda session: "it was revoked") == 1
    assert sessions.end_lapsed(None, lambda session: "it was revoked") == 0  # once is enough
    await asyncio.wait_for(request, 10)
    assert stuck.aborted.is_set()
