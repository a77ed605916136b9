"""A reader of a stream in a task of its own; `hold` stops it between two events, as a slow program does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from libs.client import ArrieroError, Job, Reset, StreamEvent, Text


class Reading:
    def __init__(self, job: Job, **how: Any) -> None:
        self.events: list[StreamEvent] = []
        self.error: ArrieroError | None = None
        self.go = asyncio.Event()
        self.go.set()
        self.task = asyncio.create_task(self._run(job, how))

    async def _run(self, job: Job, how: dict[str, Any]) -> None:
        try:
            async with contextlib.aclosing(job.stream(**how)) as events:
                async for event in events:
                    self.events.append(event)
                    await self.go.wait()
        except ArrieroError as error:
            self.error = error

    @property
    def texts(self) -> list[str]:
        """Since the last reset."""
        found: list[str] = []
        for event in self.events:
            if isinstance(event, Reset):
                found.clear()
            elif isinstance(event, Text):
                found.append(event.text)
        return found

    @property
    def ended(self) -> bool:
        return self.task.done()


@contextlib.asynccontextmanager
async def reading(job: Job, **how: Any) -> AsyncIterator[Reading]:
    reader = Reading(job, **how)
    try:
        yield reader
    finally:
        reader.task.cancel()
        (ended,) = await asyncio.gather(reader.task, return_exceptions=True)
        assert ended is None or isinstance(ended, asyncio.CancelledError), ended
