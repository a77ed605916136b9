"""The network between one service and NATS, as a process of its own: frozen it passes no byte and closes nothing, as a pulled
cable; killed it drops every connection. `python -m tests.faults.cable READY PORT:SERVER_PORT…`, all of them on 127.0.0.1."""

import asyncio
import functools
import sys
from typing import cast

import uvloop

HOST = "127.0.0.1"


class _End(asyncio.Protocol):
    """One end of a connection; what it receives leaves at the other end, no faster than that end takes it."""

    def __init__(self) -> None:
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None
        self._early = b""  # received before there was another end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's do not say so themselves

    def data_received(self, data: bytes) -> None:
        if self.other and self.other.transport:
            self.other.transport.write(data)
        else:
            self._early += data

    def join(self, other: "_End") -> None:
        self.other, other.other = other, self
        for end in (self, other):
            early, end._early = end._early, b""
            if early:
                end.data_received(early)

    def pause_writing(self) -> None:
        if self.other and self.other.transport:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other and self.other.transport:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other and self.other.transport:
            self.other.transport.close()


class _Accepted(_End):
    def __init__(self, server_port: int) -> None:
        super().__init__()
        self._server_port = server_port
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        assert self.transport
        try:
            transport, other = await asyncio.get_running_loop().create_connection(_End, HOST, self._server_port)
        except OSError:
            self.transport.close()
            return
        if self.transport.is_closing() or transport.is_closing():  # one of them went while the other came
            self.transport.close()
            transport.close()
            return
        self.join(other)


class _Ready(asyncio.Protocol):
    """Whoever asks for anything over HTTP hears 200: the ports of this process listen."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self._transport.close()


async def _run(ready: int, ends: list[tuple[int, int]]) -> None:
    loop = asyncio.get_running_loop()
    for port, server_port in ends:
        await loop.create_server(functools.partial(_Accepted, server_port), HOST, port)
    await loop.create_server(_Ready, HOST, ready)
    await asyncio.Event().wait()


def _pair(text: str) -> tuple[int, int]:
    port, _, server_port = text.partition(":")
    return int(port), int(server_port)


if __name__ == "__main__":
    uvloop.run(_run(int(sys.argv[1]), [_pair(text) for text in sys.argv[2:]]))
