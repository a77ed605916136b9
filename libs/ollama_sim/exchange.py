"""One HTTP exchange: the request's bytes in, the answer's bytes out, framed as Go's server frames them."""

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from typing import Any

from libs.ollama_sim.wire import encode

Scope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]

JSON_UTF8 = b"application/json; charset=utf-8"
JSON = b"application/json"  # errors that come up after the handler began to stream
NDJSON = b"application/x-ndjson"
TEXT = b"text/plain"
TEXT_UTF8 = b"text/plain; charset=utf-8"
CONNECTION = "ollama_sim.connection"  # key of the scope's extensions

_BUFFER = 2048  # what Go's server collects before it gives up on a Content-Length


class Connection:
    """The client's side of the exchange: whether it is still there, and ways to treat it badly."""

    def __init__(self, transport: asyncio.Transport | None = None) -> None:
        self._transport = transport
        self._lost = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        self.is_gone = False  # closed, or half-closed, which Ollama takes for the same
        self.is_half_closed = False

    def attach(self, task: asyncio.Task[Any] | None) -> None:
        """The task to cancel when the client leaves; None when the exchange is over."""
        self._task = task
        if task is not None and self.is_gone:
            task.cancel()

    def client_left(self, *, is_half_closed: bool) -> None:
        self.is_half_closed = is_half_closed and not self._lost.is_set()
        if not is_half_closed:
            self._lost.set()
        if not self.is_gone:
            self.is_gone = True
            if self._task is not None:
                self._task.cancel()

    async def close(self, *, is_reset: bool = False) -> None:
        """End the connection in the middle of whatever is going on, and return when it has ended."""
        self._task = None
        if self._transport is None:
            return
        if is_reset:
            reset(self._transport)
        else:
            self._transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):  # a client that does not read keeps a closing transport open
                await self._lost.wait()


def reset(transport: asyncio.Transport) -> None:
    """Close with a TCP reset instead of an orderly end."""
    import socket
    import struct

    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Exchange:
    """Headers leave with the first byte of the body, never before."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.connection: Connection = (scope.get("extensions") or {}).get(CONNECTION) or Connection()
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive
        self._send = send
        self.has_begun = False

    def header(self, name: bytes) -> str:
        return next((value.decode("latin-1") for key, value in self._headers if key == name), "")

    async def body(self) -> bytes:
        parts = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(parts)

    async def json(self, value: Any, status: int = 200) -> None:
        await self.whole(encode(value), JSON_UTF8, status)

    async def error(self, text: str, status: int) -> None:
        await self.json({"error": text}, status)

    async def late_error(self, text: str, status: int) -> None:
        """An error from behind the point where the real handler has chosen to stream."""
        await self.begin(JSON, status)
        await self.chunk(encode({"error": text}))
        await self.end()

    async def whole(
        self, body: bytes, content_type: bytes | None, status: int = 200, *extra: tuple[bytes, bytes]
    ) -> None:
        """A body that is known at once; long ones go out chunked, because Go does not count them first."""
        headers = [*extra]
        if content_type is not None:
            headers.append((b"Content-Type", content_type))
        headers.append((b"Date", _http_date(int(time.time()))))
        if len(body) <= _BUFFER:
            headers.append((b"Content-Length", str(len(body)).encode()))
        await self._start(status, headers)
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, content_type: bytes = NDJSON, status: int = 200) -> None:
        await self._start(status, [(b"Content-Type", content_type), (b"Date", _http_date(int(time.time())))])

    async def line(self, value: Any) -> None:
        """One NDJSON line as one HTTP chunk."""
        if not self.has_begun:
            await self.begin()
        await self.chunk(encode(value) + b"\n")

    async def chunk(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        if not self.has_begun:
            await self.whole(b"", NDJSON)
            return
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.has_begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


@functools.lru_cache(maxsize=4)
def _http_date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
