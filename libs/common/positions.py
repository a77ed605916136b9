"""Positions across epochs, and chunks put in order by offset (DESIGN §4). Pure."""

from libs.common.contracts.events import Position, whole_events
from libs.common.contracts.jobs import PastEpoch

PREFIX_KEPT = 64 * 1024  # of what was received, for the router when the worker dies
MAX_PARKED = 1024 * 1024  # of chunks beyond a gap; more are dropped and read again from the worker


def carry(position: Position, epoch: int, past: tuple[PastEpoch, ...]) -> Position | None:
    """The same place in the log of `epoch`; None when the bytes there may be others.

    A position whose epoch is listed, up to the base that followed, means the same bytes in every later epoch.
    """
    if position.offset == 0:
        return Position(epoch, 0)  # nothing was shown yet
    if position.epoch == epoch:
        return position
    for earlier in past:
        if earlier.epoch == position.epoch:
            if earlier.base is not None and position.offset <= earlier.base:
                return Position(epoch, position.offset)
            return None
    return None


class Assembler:
    """Chunks of one epoch's log, in any order, with overlaps and repeats → whole events in order, each once.

    `shown` is the position after the last whole event given out; `received` may be further, inside an event.
    Of what was received the last `keep` bytes stay, for `kept`.
    """

    def __init__(self, position: Position, *, keep: int = PREFIX_KEPT) -> None:
        self.epoch = position.epoch
        self.shown = position.offset
        self._tail = b""  # bytes of an event that is not whole yet
        self._keep = keep
        self._kept = bytearray()  # the last bytes received, whole or not
        self._parked: dict[int, bytes] = {}

    @property
    def received(self) -> int:
        return self.shown + len(self._tail)

    @property
    def gap(self) -> bool:
        """Is something missing before what has come?"""
        return bool(self._parked)

    def forget_parked(self) -> None:
        """What lies beyond a gap that nobody can fill now; it comes again with the bytes before it."""
        self._parked.clear()

    def kept(self) -> tuple[int, bytes]:
        """(offset, bytes) of the last of what was received."""
        kept = bytes(self._kept[-self._keep :]) if self._keep else b""
        return self.received - len(kept), kept

    def feed(self, offset: int, chunk: bytes) -> bytes:
        """The whole events that this chunk completes; empty when it brings nothing new or lies beyond a gap.

        An empty chunk beyond what was received says that bytes before it were missed.
        """
        if offset > self.received:
            if len(self._parked) < 4096 and sum(map(len, self._parked.values())) + len(chunk) <= MAX_PARKED:
                self._parked[offset] = max(chunk, self._parked.get(offset, b""), key=len)
            elif not self._parked:
                self._parked[offset] = b""
            return b""
        new = chunk[self.received - offset :]
        end = self.received + len(new)
        while self._parked and (start := min(self._parked)) <= end:
            parked = self._parked.pop(start)
            new += parked[end - start :]
            end = max(end, start + len(parked))
        if not new:
            return b""
        if self._keep:
            self._kept += new
            if len(self._kept) > 2 * self._keep:  # cutting at every chunk would copy all of it for each token
                del self._kept[: -self._keep]
        buffer = self._tail + new
        cut = whole_events(buffer)
        self._tail = buffer[cut:]
        self.shown += cut
        return buffer[:cut]
