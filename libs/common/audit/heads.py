"""Which chains grew since the last checkpoint: what the next one has to say. No I/O."""

from collections import deque

from libs.common.audit.chain import CHECKPOINTS, digest, writer_of
from libs.common.contracts.audit import Head, decode_audit
from libs.common.contracts.codec import Malformed

MAX_HEADS = 3_000  # of one statement: a record has at most 1 MiB


class Heads:
    """Fed with the whole stream in order; `since` is the newest checkpoint's `upto`."""

    def __init__(self) -> None:
        self.since = 0
        self.upto = 0
        self._heads: dict[str, Head] = {}
        self._waiting: deque[tuple[str, int, bytes]] = deque()  # what does not fit into the next statement

    def reset(self, since: int) -> None:
        self.since = self.upto = since
        self._heads = {}
        self._waiting.clear()

    @property
    def has_news(self) -> bool:
        return bool(self._heads)

    @property
    def is_full(self) -> bool:
        return bool(self._waiting)

    def statement_part(self) -> tuple[int, int, tuple[Head, ...]]:
        """(since, upto, heads)."""
        return self.since, self.upto, tuple(sorted(self._heads.values(), key=lambda head: head.sequence))

    def add(self, subject: str, sequence: int, data: bytes) -> None:
        if sequence <= self.since:
            return
        if self._waiting or not self._take(subject, sequence, data):
            self._waiting.append((subject, sequence, data))

    def told(self, upto: int) -> None:
        """A checkpoint was made, here or by another replica, about everything up to `upto`."""
        if upto <= self.since:
            return
        self.since, self.upto = upto, max(upto, self.upto)
        self._heads = {writer: head for writer, head in self._heads.items() if head.sequence > upto}
        while self._waiting and (self._waiting[0][1] <= upto or self._take(*self._waiting[0])):
            self._waiting.popleft()

    def _take(self, subject: str, sequence: int, data: bytes) -> bool:
        writer = writer_of(subject)
        if writer != CHECKPOINTS:
            if writer not in self._heads and len(self._heads) >= MAX_HEADS:
                return False
            try:
                n = decode_audit(data).n
            except Malformed:  # it is signed as it stands; `verify` names it
                n = 0
            self._heads[writer] = Head(writer=writer, n=n, sequence=sequence, hash=digest(data))
        self.upto = sequence
        return True
