"""Admission under pressure: a full JOBS would refuse results, too, so new jobs are refused before it is (DESIGN §3)."""

import asyncio

import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.contracts.faults import Code, failed
from libs.common.contracts.streams import JOBS
from services.gateway import metrics

log = structlog.get_logger()

LOOK_S = 5.0
FULL_ENOUGH = 0.8


class Pressure:
    def __init__(self, bus: Bus) -> None:
        self.draining = False
        self._bus = bus
        self._share = 0.0

    async def watch(self) -> None:
        while True:
            try:
                info = await self._bus.api(f"STREAM.INFO.{JOBS}")
                self._share = info["state"]["bytes"] / max(1, info["config"]["max_bytes"])
                metrics.jobs_full.set(self._share)
            except BusError as error:
                log.debug("pressure.unknown", error=str(error))
            await asyncio.sleep(LOOK_S)

    def admit(self) -> None:
        """Raises DRAINING, UNAVAILABLE or OVERLOADED when no new job may be taken now."""
        if self.draining:
            raise failed(Code.DRAINING, "this gateway is shutting down; another one takes the request", retry_after_s=1)
        if not self._bus.connected:
            raise failed(Code.UNAVAILABLE, "the queue is away at the moment; try again", retry_after_s=2)
        if self._share >= FULL_ENOUGH:
            message = f"the job store is {self._share:.0%} full; no new jobs until results have expired"
            raise failed(Code.OVERLOADED, message, retry_after_s=30)
