"""Where a reader stands in a job's log, what it may show next, and when it has to ask a gateway (DESIGN §4). Pure.

What comes in may be lost, late, doubled and out of order: live chunks, hints, and the pieces that gateways read.
"""

from enum import Enum

from libs.common.contracts.api import Piece
from libs.common.contracts.events import START, Position
from libs.common.positions import Assembler, carry
from libs.common.states import JobState


class Ask(Enum):
    NOT = "not"
    NOW = "now"
    SOON = "soon"  # the last answer did not help: in a moment


class Place:
    """`chunk` and `piece` give the whole events to show now. Once `lost`, nothing more comes before a `reset`."""

    def __init__(self, position: Position = START) -> None:
        self.ask = Ask.NOW
        self.lost = False
        self.outdated = False  # the last answer was older than what is known here
        self.ended: JobState | None = None  # so, and its log holds no more than what was shown
        self._position = position
        self._assembler: Assembler | None = None
        self._newest = position.epoch  # epoch that anybody has named
        self._void = 0  # of this epoch and older ones no more chunks are shown

    @property
    def position(self) -> Position:
        """After the last whole event that was shown."""
        if self._assembler is None:
            return self._position
        return Position(self._assembler.epoch, self._assembler.shown)

    @property
    def asks(self) -> Position:
        """Where the bytes begin that are missing."""
        if self._assembler is None:
            return self._position
        return Position(self._assembler.epoch, self._assembler.received)

    def reset(self) -> None:
        """Begin anew: what was shown is void."""
        self._position, self._assembler, self.lost, self.ask = START, None, False, Ask.NOW

    def doubt(self) -> None:
        """Something may have been missed: silence, a new connection, a hint that the job has ended."""
        self.ask = Ask.NOW

    def named(self, epoch: int) -> bool:
        """A hint names an epoch: its bind or requeue stands in the log, and older ones are fenced. Is that news?"""
        if epoch <= self._newest:
            return False
        self._newest = epoch
        self._void = max(self._void, epoch - 1)
        if self.position.offset:
            self.ask = Ask.NOW
        return True

    def chunk(self, epoch: int, offset: int, data: bytes) -> bytes:
        if self.lost or epoch <= self._void:
            return b""
        current = self._assembler
        if current is None or epoch > current.epoch:
            self._newest = max(self._newest, epoch)
            if self.position.offset:
                self.ask = Ask.NOW  # how much of what was shown does it begin with?
                return b""
            current = self._assembler = Assembler(Position(epoch, 0), keep=0)
        if epoch < current.epoch:
            return b""
        received = current.received
        events = current.feed(offset, data)
        if current.gap:
            self.ask = Ask.NOW
        elif current.received > received and epoch == self._newest:
            self.ask = Ask.NOT  # it joins on to what is there, so nothing before it was missed
        return events

    def piece(self, piece: Piece) -> bytes:
        """An answer to what `asks` said just before."""
        if self.lost:
            return b""
        self.outdated = piece.epoch < self._newest
        if self.outdated:
            self.ask = Ask.SOON
            return b""
        self._newest = piece.epoch
        self._void = max([self._void, *(earlier.epoch for earlier in piece.lineage)])
        if piece.state is JobState.QUEUED:
            self.ask = Ask.NOT  # whoever gets it will be heard
            return b""
        if self._assembler is None or self._assembler.epoch < piece.epoch:
            position = carry(self.position, piece.epoch, piece.lineage)
            if position is None:
                self.lost = True
                return b""
            self._assembler = Assembler(position, keep=0)
        if piece.offset is None:
            self.ask = Ask.NOW  # from where this epoch begins for us
            return b""
        current = self._assembler
        received = current.received
        events = current.feed(piece.offset, piece.log)
        if current.received > received:
            self.ask = Ask.NOW  # there may be more
        elif piece.offset > received:
            self.ask = Ask.NOW
        else:
            self.ended = piece.state if piece.state.final else None
            self.ask = Ask.SOON if current.gap else Ask.NOT
            current.forget_parked()
        return events
