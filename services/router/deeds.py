"""Deeds: what needs a round trip runs as a task, one at a time per job. A second one for the same job is dropped: the loop
looks at the whole again and again, and will see what is left to do."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from libs.common.bus.failures import BusError
from libs.common.contracts.subjects import JobKey
from libs.common.journal import Lost

log = structlog.get_logger()


class Deeds:
    """`after(key, outcome)` is called when a job's deed has ended: None if it was done, else what stood in its way."""

    def __init__(self, after: Callable[[JobKey, BusError | None], None]) -> None:
        self.busy: set[JobKey] = set()
        self._after = after
        self._tasks: set[asyncio.Task[None]] = set()

    def do(self, key: JobKey, deed: Coroutine[Any, Any, None]) -> None:
        if key in self.busy:
            deed.close()
            return
        self.busy.add(key)
        self.spawn(self._one(key, deed))

    async def _one(self, key: JobKey, deed: Coroutine[Any, Any, None]) -> None:
        trouble: BusError | None = None
        try:
            await deed
        except BusError as error:
            trouble = error
            if not isinstance(error, Lost):
                log.info("deed.delayed", job_id=key.job, error=str(error))
        finally:
            self.busy.discard(key)
            self._after(key, trouble)

    def spawn(self, coroutine: Awaitable[None]) -> None:
        """A task that belongs to no job in particular; its failures are logged."""

        async def logged() -> None:
            try:
                await coroutine
            except BusError as error:
                log.info("deed.delayed", error=str(error))
            except Exception:
                log.exception("deed.failed")

        task = asyncio.create_task(logged())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()
