"""A client that hides nothing: raw requests over a socket, as they were recorded."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from tests.ollama_sim.recordings import Reply, read_reply

WITHIN_S = 10


def request(method: str, path: str, body: Any = None, *, headers: str = "Connection: close\r\n") -> bytes:
    """A request like those of the recordings; a body that is not bytes is sent as JSON."""
    payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(payload)}\r\n{headers}\r\n"
    return head.encode() + payload


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until(self, text: bytes) -> bytes:
        async with asyncio.timeout(WITHIN_S):
            return await self.reader.readuntil(text)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection, orderly or not."""
        parts = []
        async with asyncio.timeout(WITHIN_S):
            with contextlib.suppress(ConnectionResetError):
                while part := await self.reader.read(65536):
                    parts.append(part)
        return b"".join(parts)

    async def line(self) -> Any:
        """The next NDJSON line of a chunked body."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                line = await self.reader.readline()
                assert line, "the connection has ended"
                if line.startswith(b"{"):
                    return json.loads(line)


@contextlib.asynccontextmanager
async def connected(host: str, port: int) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def exchange(host: str, port: int, raw: bytes) -> Reply:
    """Send a request whole and read its response to the end of the connection."""
    return read_reply(await exchange_raw(host, port, raw), is_head=raw.startswith(b"HEAD "))


async def exchange_raw(host: str, port: int, raw: bytes) -> bytes:
    async with connected(host, port) as wire:
        await wire.send(raw)
        return await wire.rest()
