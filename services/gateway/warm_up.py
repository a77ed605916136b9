"""The first requests of a new process wait until it knows its clients and its fleet.

A proxy sends requests as soon as the port takes them: a 503 in the first moments would make every restart an outage.
"""

import asyncio
import contextlib
from collections.abc import Sequence

from libs.common.ops import Check

LOOK_S = 0.02
PATIENCE_S = 5.0  # of one request; then it gets whatever answer there is


class WarmUp:
    """Over once all `checks` have passed together, for good: what is away later is told at once."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = checks
        self._over = asyncio.Event()

    async def run(self) -> None:
        while any(check() for check in self._checks):  # noqa: ASYNC110  # what is checked tells nobody when it changes
            await asyncio.sleep(LOOK_S)
        self._over.set()

    async def wait(self) -> None:
        if self._over.is_set():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self._over.wait()
