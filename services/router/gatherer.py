"""Asks what was shown of an epoch: the segments in OUT, and the gateways that watch (DESIGN §4). After the fence only."""

import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away, NoResponders
from libs.common.bus.stored import Stored
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.control import FreezePrefix
from libs.common.contracts.events import parse_frame
from libs.common.contracts.streams import OUT
from libs.common.contracts.subjects import JobKey
from services.router.gathering import assemble

log = structlog.get_logger()

GATHER_S = 0.2  # how long gateways have to say what they have shown
LOOK_S = 2.0


class Gatherer:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def gather(self, key: JobKey, epochs: list[int], carried: bytes) -> bytes:
        """The visible text, never shorter than `carried`. Gateways freeze the epochs as they answer. Raises BusError."""
        pieces = []
        for epoch in epochs:
            pieces += await self._segments(key, epoch)
            pieces += await self._shown(key, epoch)
        return assemble(pieces, carried)

    async def watched(self, key: JobKey) -> bool:
        """Does any gateway show this job to somebody? Raises Away when that is not known."""
        try:
            await self._bus.request(subjects.prefix(key), encode(FreezePrefix(epoch=0)), timeout=LOOK_S)
        except NoResponders:
            return False
        return True

    async def _segments(self, key: JobKey, epoch: int) -> list[tuple[int, bytes]]:
        """What the worker had acked. A direct get may be stale, so the leader says first up to where it has to reach."""
        subject = subjects.segments_of_epoch(key, epoch)
        newest = await self._bus.last(OUT, subject)
        found: list[Stored] = []
        while newest is not None and (not found or found[-1].sequence < newest.sequence):
            start = found[-1].sequence + 1 if found else 1
            more = await self._bus.from_sequence(OUT, subject, start, batch=1000, timeout=5)
            if not more:
                raise Away(f"segments of {subject} are not on every replica yet")
            found += more
        return [parse_frame(stored.data) for stored in found]

    async def _shown(self, key: JobKey, epoch: int) -> list[tuple[int, bytes]]:
        answers = await self._bus.ask_all(subjects.prefix(key), encode(FreezePrefix(epoch=epoch)), within=GATHER_S)
        pieces = []
        for answer in answers:
            try:
                pieces.append(parse_frame(answer))
            except Malformed as error:
                log.warning("prefix.malformed", error=str(error))
        return pieces
