"""Gateways' keepers of one account without NATS and without waiting: a bucket in memory, and a time that tests move."""

import asyncio
from typing import TypeVar

from libs.common.bus.failures import Conflict, Unconfirmed
from libs.common.contracts.clients import Limits
from services.gateway.limits import keeper
from services.gateway.limits.keeper import Keeper, Wait
from services.gateway.limits.rolling import Instant

T = TypeVar("T")

ACCOUNT = "client.acme"


class Memory:
    """A bucket with compare-and-set. `lose`: of the next write "the ack", after it was stored, or "the write" itself.
    `late`: writes whose ack was lost, which arrive later."""

    def __init__(self) -> None:
        self.value: bytes | None = None
        self.revision = 0
        self.lose = ""
        self.late: list[tuple[bytes, int]] = []
        self.reads = 0
        self.writes = 0

    async def get(self, key: str) -> tuple[bytes | None, int]:
        self.reads += 1
        return self.value, self.revision

    async def put(self, key: str, value: bytes, *, expected: int | None = None, ttl_s: int | None = None) -> int:
        lose, self.lose = self.lose, ""
        if lose == "the write":
            self.late.append((value, expected or 0))
            raise Unconfirmed("lost")
        self._store(value, expected or 0)
        if lose == "the ack":
            raise Unconfirmed("stored, and nobody knows")
        return self.revision

    def deliver_late(self) -> None:
        late, self.late = self.late, []
        for value, expected in late:
            if expected == self.revision:
                self._store(value, expected)

    def _store(self, value: bytes, expected: int) -> None:
        if expected != self.revision:
            raise Conflict("somebody was faster")
        self.value, self.revision, self.writes = value, self.revision + 1, self.writes + 1


class Time:
    def __init__(self) -> None:
        self.ms = 1_795_438_990_061

    def monotonic(self) -> float:
        return self.ms / 1000


class Skewed:
    """What one gateway knows of the server's clock: the truth is somewhere in between."""

    def __init__(self, time: Time, before_ms: int, after_ms: int) -> None:
        self._time, self._before, self._after = time, before_ms, after_ms

    async def now(self) -> Instant:
        return Instant(self._time.ms - self._before, self._time.ms + self._after)


class World:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.time = Time()
        self.bucket = Memory()
        self.keepers: list[Keeper] = []
        self.started = 0
        self._loop = asyncio.new_event_loop()

    def start(self, before_ms: int = 0, after_ms: int = 0) -> Keeper:
        self.started += 1
        made = Keeper(
            self.bucket, Skewed(self.time, before_ms, after_ms), ACCOUNT, "acme", f"gw{self.started}",
            monotonic=self.time.monotonic,
        )  # fmt: skip
        self.keepers.append(made)
        return made

    def do(self, work: "asyncio.Future[T] | object") -> T:
        return self._loop.run_until_complete(work)  # type: ignore[arg-type]

    def take(self, who: Keeper, together: int = 1) -> list[Wait | None]:
        async def all_of_them() -> list[Wait | None]:
            return await asyncio.gather(*(who.take(self.limits) for _ in range(together)))

        return self.do(all_of_them())

    def close(self) -> None:
        self._loop.close()


def no_pauses() -> None:
    """Nothing here takes time, so nothing has to be waited for."""
    keeper.CONFLICT_S = keeper.AGAIN_S = keeper.TURN_S = 0.0
