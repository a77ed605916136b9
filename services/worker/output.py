"""Publishes a run's log while it grows (DESIGN §4): live chunks that nobody acks, a segment a second that is acked.

Several events that came in one read of the socket share one chunk; the first token leaves at once. Without news an empty
chunk goes out every second, so that a gateway that missed the last one finds out.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError, Refused
from libs.common.contracts import subjects
from libs.common.contracts.events import MAX_CHUNK, frame
from libs.common.contracts.headers import MSG_ID
from libs.common.contracts.subjects import OutKey
from services.worker.tokenlog import TokenLog

log = structlog.get_logger()

BEAT_S = 1.0
SEGMENT_RETRY_S = 0.5


class Output:
    def __init__(self, bus: Bus, key: OutKey, tokens: TokenLog) -> None:
        self._bus = bus
        self._tokens = tokens
        self._chunk_subject = subjects.chunk(key)
        self._segment_subject = subjects.segment(key)
        self._message_id = f"{key.job}.{key.epoch}"
        self._shown = len(tokens)
        self._kept = len(tokens)
        self._quiet = True

    async def flush(self) -> None:
        """Publish what has been appended since the last time."""
        self._quiet = False
        while self._shown < len(self._tokens):
            piece = self._tokens.read(self._shown, MAX_CHUNK)
            await self._bus.publish(self._chunk_subject, frame(self._shown, piece))
            self._shown += len(piece)

    @contextlib.asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        beat = asyncio.create_task(self._beat(), name="output.beat")
        try:
            yield
        finally:
            beat.cancel()
            await asyncio.wait([beat], timeout=BEAT_S)
            if beat.done() and not beat.cancelled() and (error := beat.exception()) is not None:
                log.error("beat.failed", error=repr(error))

    async def _beat(self) -> None:
        """Endless: once a second a segment if there is news, an empty chunk if there is none."""
        while True:
            await asyncio.sleep(BEAT_S)
            if self._quiet:
                await self._bus.publish(self._chunk_subject, frame(self._shown, b""))
            self._quiet = True
            try:
                await self._keep()
            except BusError as error:
                log.debug("segment.delayed", error=str(error))

    async def keep_all(self, *, within: float) -> bool:
        """Have everything acked in OUT, as before giving a job back; False if that did not work out in time."""
        try:
            async with asyncio.timeout(within):
                while self._kept < len(self._tokens):
                    try:
                        await self._keep()
                    except Refused:
                        return False
                    except BusError:
                        await asyncio.sleep(SEGMENT_RETRY_S)
        except TimeoutError:
            return False
        return True

    async def _keep(self) -> None:
        while self._kept < len(self._tokens):
            at = self._kept
            piece = self._tokens.read(at, MAX_CHUNK)
            # Stored twice after a lost ack would be harmless (offsets tell); the message id only saves the space.
            headers = {MSG_ID: f"{self._message_id}.{at}.{len(piece)}"}
            await self._bus.append(self._segment_subject, frame(at, piece), headers=headers)
            self._kept = max(self._kept, at + len(piece))  # the beat may have had the same piece acked meanwhile
