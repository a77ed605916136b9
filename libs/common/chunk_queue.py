"""Chunks of a job's log that came live and that its reader has not taken yet.

Bounded: of a reader that is too slow all are dropped; the offsets of what comes then show the gap, and it is read again.
"""

from collections import deque
from typing import NamedTuple

MAX_WAITING = 2 * 1024 * 1024  # bytes
ENTRY_COST = 200  # of one chunk besides its bytes: tokens are small, so this is most of it


class Chunk(NamedTuple):
    epoch: int
    offset: int
    data: bytes


class ChunkQueue:
    def __init__(self) -> None:
        self._chunks: deque[Chunk] = deque()
        self.size = 0  # bytes, with what the entries cost

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def newest(self) -> Chunk | None:
        return self._chunks[-1] if self._chunks else None

    @property
    def epoch(self) -> int:
        """Of the chunk whose turn it is; 0 when there is none."""
        return self._chunks[0].epoch if self._chunks else 0

    def add(self, chunk: Chunk) -> None:
        cost = len(chunk.data) + ENTRY_COST
        if self.size + cost > MAX_WAITING:
            self._chunks.clear()
            self.size = 0
        self._chunks.append(chunk)
        self.size += cost

    def pop(self) -> Chunk:
        """Raises IndexError."""
        chunk = self._chunks.popleft()
        self.size -= len(chunk.data) + ENTRY_COST
        return chunk

    def put_back(self, chunk: Chunk) -> None:
        self._chunks.appendleft(chunk)
        self.size += len(chunk.data) + ENTRY_COST

    def forget(self, epoch: int) -> None:
        """Those of this epoch and of older ones."""
        self._chunks = deque(chunk for chunk in self._chunks if chunk.epoch > epoch)
        self.size = sum(len(chunk.data) + ENTRY_COST for chunk in self._chunks)
