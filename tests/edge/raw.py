"""A port as services have it, before an application that remembers what reached it; and clients that write raw bytes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import h11

from libs.common.edge import Edge, HttpLimits, Rules
from libs.common.runtime import Port
from tests.support.http import free_socket, served

QUICK = HttpLimits(header_timeout=0.3, body_idle_timeout=0.3, body_timeout=30, stalled_timeout=0.3, linger=0.3)
PATIENT = HttpLimits(header_timeout=60, body_idle_timeout=60, stalled_timeout=60)


class App:
    """Answers with `answer`; of a POST it reads the body first. `/slow` waits for `go`, `/late` does before it reads."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.scopes: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.left = 0
        self.answer = b"{}"
        self.go = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.seen.append((scope["method"], scope["path"]))
        self.scopes.append(scope)
        if scope["path"] == "/late":
            await self.go.wait()
        if scope["method"] == "POST" and scope["path"] != "/unread":
            body, more = b"", True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.left += 1
                    return
                body += message["body"]
                more = message["more_body"]
            self.bodies.append(body)
        if scope["path"] == "/slow":
            await self.go.wait()
        if scope["path"] == "/fails":
            raise RuntimeError("a mistake")
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(self.answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.answer})


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def until_closed(self, within: float = 20.0) -> bytes:
        """All that comes until the other side ends the connection."""
        got = b""
        async with asyncio.timeout(within):
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                while data := await self.reader.read(65536):
                    got += data
        return got


class Place:
    def __init__(self, app: App, url: str) -> None:
        self.app = app
        self.url = url
        self.address = ("127.0.0.1", int(url.rpartition(":")[2]))

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    async def say(self, data: bytes) -> bytes:
        """Everything answered to it until the connection ends, for what ends it."""
        async with self.client() as client:
            client.write(data)
            return await client.until_closed()


@contextlib.asynccontextmanager
async def place(limits: HttpLimits = PATIENT, rules: Rules | None = None) -> AsyncIterator[Place]:
    app = App()
    async with served(Port(app, "127.0.0.1", 0, Edge(limits, rules or Rules())), free_socket()) as url:
        yield Place(app, url)


def answers(raw: bytes) -> list[int]:
    """The statuses of the answers to GETs in what came, read by an independent parser; all of it must be HTTP."""
    return [status for status, _, _ in parsed(raw)]


def parsed(raw: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    found: list[tuple[int, dict[str, str], bytes]] = []
    if not raw:
        return found
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    connection.receive_data(b"")
    body = b""
    head: h11.Response | None = None
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Response):
            head, body = event, b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            names = {name.decode(): value.decode() for name, value in head.headers}
            found.append((head.status_code, names, body))
            trailing, _ = connection.trailing_data
            if connection.their_state is h11.MUST_CLOSE or connection.their_state is h11.CLOSED:
                assert not trailing, trailing
                return found
            if not trailing:
                return found
            connection.start_next_cycle()
            connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
            connection.send(h11.EndOfMessage())
        elif isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA:
            return found


def get(path: str = "/", *more: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: x", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def post(path: str, body: bytes, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body
