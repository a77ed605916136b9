"""Empties what jobs that have ended leave behind (DESIGN §3, After `done`): some on their way, for as long as there are any."""

import asyncio
from collections.abc import Callable

import structlog

from libs.common.bus.failures import BusError
from libs.common.contracts.subjects import JobKey
from services.router.deeds import Deeds
from services.router.index import Index, Leftover
from services.router.transitions import Transitions

log = structlog.get_logger()

AT_ONCE = 64
RETRY_S = 5.0


class Tidier:
    """`more` is called when one has gone and others are left."""

    def __init__(self, index: Index, transitions: Transitions, deeds: Deeds, more: Callable[[], None]) -> None:
        self.under_way = 0
        self._index = index
        self._transitions = transitions
        self._deeds = deeds
        self._more = more

    def tidy(self) -> None:
        while self.under_way < AT_ONCE and (next_one := self._index.take_leftover()) is not None:
            self.under_way += 1
            self._deeds.spawn(self._one(*next_one))

    async def _one(self, key: JobKey, leftover: Leftover) -> None:
        try:
            await self._transitions.tidy(key, leftover)
        except BusError as error:
            log.debug("tidy.delayed", job_id=key.job, error=str(error))
            await asyncio.sleep(RETRY_S)
            self._index.put_back(key, leftover)
        finally:
            self.under_way -= 1
            if self._index.leftovers:
                self._more()
