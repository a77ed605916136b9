"""How many bytes of requests may be in memory at once, from the first byte until the job is stored."""

import contextlib
from collections.abc import Iterator

from libs.common.contracts.faults import Code, failed

MIB = 1024 * 1024
MAX_TOGETHER = 256 * MIB
RETRY_AFTER_S = 1.0


class Share:
    """What one request holds of it; counted as it comes, given back once."""

    def __init__(self, intake: "Intake") -> None:
        self._intake = intake
        self._held = 0

    def count(self, size: int) -> None:
        """Raises Failed: OVERLOADED."""
        if self._intake.held + size > self._intake.limit:
            message = "this gateway reads as many large requests as it can bear; try again, or another gateway"
            raise failed(Code.OVERLOADED, message, retry_after_s=RETRY_AFTER_S)
        self._intake.held += size
        self._held += size

    def free(self) -> None:
        self._intake.held -= self._held
        self._held = 0


class Intake:
    """`largest` is that of one body: four of them always fit."""

    def __init__(self, largest: int, *, together: int = MAX_TOGETHER) -> None:
        self.largest = largest
        self.limit = max(together, 4 * largest)
        self.held = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[Share]:
        share = Share(self)
        try:
            yield share
        finally:
            share.free()
