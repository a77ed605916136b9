"""A stream to one client: frames as they come, pings while nothing comes, and an end when the client goes or we do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from services.gateway import metrics
from services.gateway.http import Disconnected, Exchange
from services.gateway.sse import PING

PING_S = 10.0  # proxies cut connections that are silent for a minute
STALLED_S = 60.0  # a client that takes nothing for so long is closed; it can resume


class Draining(Exception):
    """This gateway shuts down; the stream ends here and can be resumed elsewhere."""


class Streams:
    """All open streams of this process."""

    def __init__(self) -> None:
        self._ending = asyncio.Event()
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def end_all(self) -> None:
        self._ending.set()

    async def all_closed(self) -> None:
        await self._idle.wait()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        self._open += 1
        self._idle.clear()
        metrics.streams_open.set(self._open)
        try:
            yield
        finally:
            self._open -= 1
            metrics.streams_open.set(self._open)
            if not self._open:
                self._idle.set()

    async def relay(self, exchange: Exchange, frames: AsyncIterator[bytes], *, ping: bytes = PING) -> None:
        """Write what `frames` yields. The response must have begun.

        Raises Disconnected when the client has gone (or takes nothing any more), Draining when `end_all` was called.
        """
        gone = asyncio.ensure_future(exchange.disconnected())
        ending = asyncio.ensure_future(self._ending.wait())
        following: asyncio.Future[bytes] | None = None
        try:
            while True:
                following = following or asyncio.ensure_future(anext(frames))
                waits: set[asyncio.Future[Any]] = {following, gone, ending}
                await asyncio.wait(waits, timeout=PING_S, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    raise Disconnected
                if following.done():
                    try:
                        frame = following.result()
                    except StopAsyncIteration:
                        return
                    following = None
                    await _write(exchange, frame)
                elif ending.done():
                    raise Draining
                else:
                    await _write(exchange, ping)
        finally:
            for waiting in (gone, ending, following):
                if waiting is not None and not waiting.done():
                    waiting.cancel()
                    with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                        await waiting


async def _write(exchange: Exchange, data: bytes) -> None:
    if not data:
        return
    try:
        async with asyncio.timeout(STALLED_S):
            await exchange.write(data)
    except (TimeoutError, OSError) as error:
        raise Disconnected from error
