"""Headers, address, fields, trailers, connections: each has its number."""

import asyncio
import contextlib
import socket

import pytest

from libs.common.edge import HttpLimits
from tests.edge.raw import PATIENT, answers, get, parsed, place
from tests.support.waiting import eventually

LIMITS = PATIENT._replace(max_header=4096, max_fields=20, max_target=256)
LARGE = {
    "one header": (get("/", "X: " + "y" * 5000), 431),
    "many headers": (get("/", *(f"X-{n}: {'y' * 500}" for n in range(10))), 431),
    "too many fields": (get("/", *(f"X-{n}: y" for n in range(20))), 431),
    "a name": (get("/", "X" * 5000 + ": y"), 431),
    "a header that never ends": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 5000, 431),
    "a header that never begins": (b"\r\n" * 5000, 431),
    "a path": (get("/" + "x" * 300), 414),
    "a query": (get("/?" + "x" * 300), 414),
    "trailers": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: " + b"y" * 5000 + b"\r\n\r\n",
        431,
    ),
    "many trailers": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 30 + b"\r\n",
        431,
    ),
}


@pytest.mark.parametrize("name", LARGE)
async def test_what_is_too_large_is_refused(name: str) -> None:
    data, expected = LARGE[name]
    async with place(LIMITS) as there:
        ((status, headers, _),) = parsed(await there.say(data))
        assert (status, headers["connection"]) == (expected, "close")
        assert there.app.bodies == []


async def test_what_just_fits_passes() -> None:
    async with place(LIMITS) as there:
        filled = get("/" + "x" * 255, *(f"X-{n}: {'y' * 180}" for n in range(18)), "Connection: close")
        assert answers(await there.say(filled)) == [200]


async def test_the_limit_is_for_each_request_not_for_the_connection() -> None:
    async with place(LIMITS) as there, there.client() as client:
        for _ in range(5):
            client.write(get("/", "X: " + "y" * 3000))
            assert b"200 OK" in await client.reader.readuntil(b"{}")


async def test_who_is_refused_gets_the_answer_though_it_goes_on_sending() -> None:
    """A connection that is closed at once answers with a reset, which destroys what is on its way."""
    loop = asyncio.get_running_loop()
    async with place(LIMITS._replace(linger=30)) as there:
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, there.address)
            await loop.sock_sendall(
                client, get("/", "X: " + "y" * 5000) + b"z" * 30_000_000
            )  # first all of it, as many do
            client.shutdown(socket.SHUT_WR)
            got = b""
            while data := await asyncio.wait_for(loop.sock_recv(client, 65536), 20):
                got += data
        assert answers(got) == [431]


async def _idle(stack: contextlib.AsyncExitStack, there: object, count: int) -> None:
    for _ in range(count):
        client = await stack.enter_async_context(there.client())  # type: ignore[attr-defined]
        client.write(get())
        await client.reader.readuntil(b"{}")


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [
        (PATIENT._replace(max_connections=3), 503, b'"overloaded"'),
        (PATIENT._replace(max_connections_per_address=3), 429, b'"rate_limited"'),
    ],
)
async def test_too_many_connections_are_told_so_and_then_closed(limits: HttpLimits, status: int, code: bytes) -> None:
    async with place(limits) as there, contextlib.AsyncExitStack() as stack:
        await _idle(stack, there, 3)
        ((answered, headers, body),) = parsed(await there.say(get("/more")))
        assert (answered, headers["connection"], headers["retry-after"]) == (status, "close", "5")
        assert code in body
        waiting = [await stack.enter_async_context(there.client()) for _ in range(16)]
        await eventually(lambda: _closed_at_once(there))
        assert ("GET", "/more") not in there.app.seen
        for client in waiting:
            client.writer.transport.abort()
        await stack.aclose()
        async with asyncio.timeout(20):
            while answers(await there.say(get("/again", "Connection: close"))) != [200]:
                await asyncio.sleep(0.01)


async def _closed_at_once(there: object) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return await there.say(get("/more")) == b""  # type: ignore[attr-defined]
    return True
