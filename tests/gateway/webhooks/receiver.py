"""A receiver on a socket of its own, that answers what a test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from tests.support.http import free_socket, served


class Got(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    def __init__(self) -> None:
        self.url = ""
        self.got: list[Got] = []
        self.status = 200
        self.headers: list[tuple[bytes, bytes]] = []
        self.go = asyncio.Event()
        self.go.set()  # cleared: requests get no answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.got.append(Got(scope["path"], headers, body))
        await self.go.wait()
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with served(receiver, free_socket()) as url:
        receiver.url = url
        try:
            yield receiver
        finally:
            receiver.go.set()
