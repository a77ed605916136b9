"""The append-only log of one run, in memory: what the worker publishes, answers reads from, and stores in `done`."""

from libs.common.contracts.events import Event, line


class TokenLog:
    """Starts with the text carried over from earlier epochs, if any; a position is a byte offset."""

    def __init__(self, carried: bytes = b"") -> None:
        self._bytes = bytearray(carried)

    def __len__(self) -> int:
        return len(self._bytes)

    def append(self, event: Event) -> None:
        self._bytes += line(event)

    def read(self, offset: int, limit: int | None = None) -> bytes:
        end = None if limit is None else offset + limit
        return bytes(self._bytes[offset:end])
