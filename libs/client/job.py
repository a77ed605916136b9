"""One job of this client."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from libs.client.calls import PASSING, PAUSE_S, TRY_S, Calls, view_of
from libs.client.errors import ArrieroError, PositionLost, TimedOut
from libs.client.events import Reset, StreamEvent
from libs.client.result import Result, gathered, result_of
from libs.client.stream import Stream
from libs.common.bus.link import Message
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed
from libs.common.contracts.events import START, parse_position
from libs.common.contracts.faults import Code
from libs.common.contracts.jobs import decode_hint
from libs.common.contracts.subjects import JobKey

ASK_S = 10.0  # one request for the end; a hint asks again at once


class Job:
    """Made by `Arriero.submit` and `Arriero.job`. `view`: what the gateway said when it was submitted, else empty."""

    def __init__(
        self, calls: Calls, streams: set[Stream], job: str, view: dict[str, Any] | None = None, *, patience: float
    ) -> None:
        self.id = subjects.token(job, "job id")
        self.view = view or {}
        self._calls = calls
        self._streams = streams
        self._patience = patience

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    async def stream(self, *, after: str | None = None, reset: bool = False) -> AsyncGenerator[StreamEvent, None]:
        """The events of the answer as they come, each once and in order, from the beginning or after the position of one.

        It resumes and repairs by itself, and ends when the job has succeeded. Raises JobFailed (also JobCancelled, JobExpired)
        when it ended otherwise, PositionLost when what was shown is void, unless `reset`: then it yields a Reset and begins anew.
        NotConnected, NoGateway, NoAnswer, Unavailable: nobody could be asked for as long as `patience`.
        """
        async with self._opened(after, takes_reset=reset) as stream:
            self._streams.add(stream)
            try:
                async with aclosing(stream.events()) as events:
                    async for event in events:
                        yield event
            finally:
                self._streams.discard(stream)

    async def result(self, timeout: float | None = None) -> Result:
        """The final result, as soon as it is there. Raises TimedOut (the job goes on), JobFailed, ArrieroError as `stream`."""
        try:
            async with asyncio.timeout(timeout):
                try:
                    return result_of(await self._ended())
                except ArrieroError as error:
                    if error.code != Code.RESULT_TOO_LARGE:
                        raise
                return await self._gathered()
        except TimeoutError as error:
            if isinstance(error, ArrieroError):
                raise
            raise TimedOut(f"the job has not ended within {timeout:g} s; it goes on", retryable=True) from error

    async def status(self) -> dict[str, Any]:
        """As `GET /jobs/{id}`: state, node, position in the queue, times, result. Raises ArrieroError."""
        return view_of(await self._calls.surely("get", {"id": self.id}, within=self._patience))

    async def cancel(self) -> dict[str, Any]:
        """The job, with `cancelling` if its end was not seen at once. One that has ended stays as it is. Raises ArrieroError."""
        return view_of(await self._calls.surely("cancel", {"id": self.id, "keep": True}, within=self._patience))

    async def erase(self) -> None:
        """Leave nothing of a job that has ended; one that runs is cancelled, and can be erased then. Raises ArrieroError."""
        await self._calls.surely("cancel", {"id": self.id}, within=self._patience)

    def _opened(self, after: str | None, *, takes_reset: bool) -> Stream:
        try:
            position = START if after is None else parse_position(after)
        except Malformed as error:
            raise PositionLost(str(error)) from error
        return Stream(self._calls, self.id, position, takes_reset=takes_reset, patience=self._patience)

    async def _ended(self) -> dict[str, Any]:
        news = asyncio.Event()

        def on_hint(message: Message) -> None:
            try:
                final = decode_hint(message.data).state.final
            except Malformed:
                return
            if final:
                news.set()

        subject = subjects.hint(JobKey(self._calls.client, self.id))
        subscription = await self._calls.bus.subscribe(subject, on_hint)
        try:
            return await self._asked_until_ended(news)
        finally:
            await subscription.stop()

    async def _asked_until_ended(self, news: asyncio.Event) -> dict[str, Any]:
        trouble_since: float | None = None
        while True:
            asking = asyncio.ensure_future(
                self._calls.once("get", {"id": self.id, "wait_s": ASK_S}, timeout=ASK_S + TRY_S)
            )
            ending = asyncio.ensure_future(news.wait())
            try:
                await asyncio.wait({asking, ending}, return_when=asyncio.FIRST_COMPLETED)
                if not asking.done():
                    # It has ended; who was asked answers now, unless that gateway has gone.
                    await asyncio.wait({asking}, timeout=PAUSE_S)
                news.clear()
                if not asking.done():
                    continue
                view = view_of(asking.result())
                trouble_since = None
            except ArrieroError as error:
                trouble_since = trouble_since or time.monotonic()
                if error.code not in PASSING or time.monotonic() - trouble_since >= self._patience:
                    raise
                await asyncio.sleep(max(PAUSE_S, error.retry_after_s or 0))
                continue
            finally:
                for task in (asking, ending):
                    task.cancel()
                await asyncio.gather(asking, ending, return_exceptions=True)
            if view.get("finished_at"):
                return view

    async def _gathered(self) -> Result:
        events: list[StreamEvent] = []
        async with self._opened(None, takes_reset=True) as stream, aclosing(stream.events()) as arriving:
            async for event in arriving:
                if isinstance(event, Reset):
                    events.clear()
                else:
                    events.append(event)
        assert stream.end is not None
        return gathered(self.id, events, stream.end)
