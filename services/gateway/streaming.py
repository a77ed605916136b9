"""A stream to one client: frames as they come, pings while nothing comes, and an end when the client goes or we do."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from libs.common.contracts.clients import Principal
from services.gateway import metrics
from services.gateway.http import Disconnected, Exchange
from services.gateway.limits import Limiter
from services.gateway.sse import PING

T = TypeVar("T")

# An error that comes so soon is a response with its own status; after that the stream begins, and pings tell proxies that
# somebody is there.
BEGIN_S = 2.0
PING_S = 10.0  # after so long without a frame, at most twice that; proxies cut connections that are silent for a minute


class Draining(Exception):
    """This gateway shuts down; the stream ends here and can be resumed elsewhere."""


class Streams:
    """All open streams of this process."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def end_all(self) -> None:
        if not self._ending.done():
            self._ending.set_result(None)

    async def all_closed(self) -> None:
        await self._idle.wait()

    @contextlib.asynccontextmanager
    async def opened(self, principal: Principal) -> AsyncIterator[None]:
        """Raises Failed: RATE_LIMITED. Raises BusError."""
        self._open += 1
        self._idle.clear()
        metrics.streams_open.set(self._open)
        try:
            async with self._limiter.stream(principal):
                yield
        finally:
            self._open -= 1
            metrics.streams_open.set(self._open)
            if not self._open:
                self._idle.set()

    async def during(self, exchange: Exchange, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns, unless the client goes (Disconnected) or `end_all` is called (Draining) before."""
        gone = asyncio.ensure_future(exchange.disconnected())
        working = asyncio.ensure_future(work)
        try:
            waits: set[asyncio.Future[Any]] = {gone, working, self._ending}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise Disconnected if gone.done() else Draining
        finally:
            await _cancelled(gone, working)

    async def relay(
        self,
        exchange: Exchange,
        frames: AsyncGenerator[bytes, None],
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Write what `frames` yields; the response begins with the first frame, or after BEGIN_S.

        Raises what `frames` raises, Disconnected when the client has gone (or takes nothing any more), and Draining when
        `end_all` was called. Whole frames only are written, so something can be added afterwards.
        """
        writer = _Writer(exchange, headers)
        gone = asyncio.ensure_future(exchange.disconnected())
        # One task for the whole stream: a task and a time-out for each frame cost more than the frame.
        writing = asyncio.ensure_future(writer.write_all(frames))
        patience = BEGIN_S
        try:
            while True:
                await asyncio.wait({gone, writing, self._ending}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                if writing.done():
                    return writing.result()
                if gone.done():
                    raise Disconnected
                if self._ending.done():
                    raise Draining
                await writer.while_idle()
                patience = PING_S
        finally:
            await _cancelled(gone, writing)
            await frames.aclose()


class _Writer:
    def __init__(self, exchange: Exchange, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._exchange = exchange
        self._headers = headers
        self._is_writing = False
        self._since = time.monotonic()  # when the last write began, or ended

    async def write_all(self, frames: AsyncIterator[bytes]) -> None:
        async for frame in frames:
            await self._write(frame)

    async def while_idle(self) -> None:
        """Called now and then: begins a response that nothing began, pings. (Who takes nothing is closed by the port.)"""
        quiet = time.monotonic() - self._since
        if not self._exchange.started:
            await self._write(b"")
        elif not self._is_writing and quiet >= PING_S:
            await self._write(PING)

    async def _write(self, frame: bytes) -> None:
        self._is_writing, self._since = True, time.monotonic()
        try:
            if not self._exchange.started:
                await self._exchange.start_events(self._headers)
            if frame:
                await self._exchange.write(frame)
        except OSError as error:
            raise Disconnected from error
        self._is_writing, self._since = False, time.monotonic()


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Returns when all have ended. What they raise is of no interest any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
