"""Failed authentications as all replicas have seen them together; the shell around `failures`.

Asking (`blocked_s`) is a look into memory. A failure (`failed`) counts here at once, in the same step of the event loop, and is
written behind the answer's back: a compare-and-set on one small record that ends by itself, several failures in one write.
Other replicas hear of it within milliseconds; what they let through meanwhile is all that a race can give.
While NATS is away each replica counts for itself.
"""

import asyncio
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NoReturn

import structlog

from libs.common.bus.buckets import Bucket, value_of
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError, Conflict
from libs.common.bus.follower import Follower
from libs.common.bus.stored import Stored
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.streams import ATTEMPTS, key_subject
from libs.common.credentials.failures import (
    ADDRESS_RATE,
    NAME_RATE,
    Arrival,
    Failures,
    Rate,
    address_group,
    after_failures,
    decode_arrival,
    wait_s,
)
from libs.common.ids import derive

log = structlog.get_logger()

MAX_KNOWN = 100_000  # records in memory, some 20 MB; the oldest go first
MAX_PROVEN = 10_000
MAX_PENDING = 10_000  # while NATS is away
PROVEN_S = 24 * 3600.0
RETRY_S = 1.0


class Names:
    """Names of records: keyed hashes, the same at all replicas."""

    def __init__(self, cluster_secret: bytes) -> None:
        self._key = derive(cluster_secret, "failures")

    def address(self, address: str) -> str:
        return self._of("address", address_group(address))

    def name(self, name: str) -> str:
        return self._of("name", name)

    def _of(self, kind: str, text: str) -> str:
        message = f"{kind}\0{text}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, message, "sha256").hex()[:32]


class Verdict:
    """What a caller needs to know before, and to say after, it verifies a credential: made by `FailureLog.ask`."""

    def __init__(self, log: "FailureLog", address: str, name: str) -> None:
        self._log = log
        self._address = address
        self._name = name

    @property
    def blocked_s(self) -> float:
        """Above 0: do not verify, answer 429. Not so for who succeeded from this address within a day: whatever others do
        there, it gets its chance."""
        return 0.0 if self._log.proven(self._address, self._name) else self._log.address_wait_s(self._address)

    def succeeded(self) -> None:
        self._log.note_success(self._address, self._name)

    def failed(self) -> float:
        """Counts it. Above 0: answer 429 with so many seconds, else 401. A name that fails too often from everywhere gets
        429 for a wrong secret, and the right one is let in: nobody can lock out another."""
        return self._log.note_failure(self._address, self._name)


class FailureLog:
    def __init__(
        self,
        bus: Bus,
        cluster_secret: bytes,
        *,
        address_rate: Rate = ADDRESS_RATE,
        name_rate: Rate = NAME_RATE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bucket = Bucket(bus, ATTEMPTS)
        self._names = Names(cluster_secret)
        self._address_rate = address_rate
        self._name_rate = name_rate
        self._clock = clock
        self._tats: OrderedDict[str, float] = OrderedDict()
        self._pending: dict[str, Failures] = {}  # not written yet; late, they weigh as in time
        self._proven: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._wake = asyncio.Event()
        # No `on_reset`: what is known here ends by itself, and a bucket made anew takes nothing of it back.
        self._follower = Follower(bus, f"KV_{ATTEMPTS}", [key_subject(ATTEMPTS, "failed.*")], self._record)

    async def run(self) -> NoReturn:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follower.run())
            tasks.create_task(self._keep_writing())
        raise AssertionError("neither ends")

    def ask(self, address: str, name: str) -> Verdict:
        """`name`: who it says it is, a client's id or a key's; it need not exist. Empty: it does not say."""
        return Verdict(self, self._names.address(address), self._names.name(name) if name else "")

    def proven(self, address: str, name: str) -> bool:
        at = self._proven.get((address, name))
        return at is not None and self._clock() - at < PROVEN_S

    def address_wait_s(self, address: str) -> float:
        return wait_s(self._tats.get(address, 0.0), self._address_rate, self._clock())

    def note_success(self, address: str, name: str) -> None:
        self._proven[address, name] = self._clock()
        self._proven.move_to_end((address, name))
        if len(self._proven) > MAX_PROVEN:
            self._proven.popitem(last=False)

    def note_failure(self, address: str, name: str) -> float:
        """The longer of the two waits that there were before it."""
        now = self._clock()
        longest = 0.0
        for key, rate in ((address, self._address_rate), (name, self._name_rate)):
            if not key or not rate.per_minute:
                continue
            tat = self._tats.get(key, 0.0)
            waits = wait_s(tat, rate, now)
            longest = max(longest, waits)
            if waits > 0:  # nothing changes, and nothing is written: a flood costs one write for each interval
                continue
            self._keep(key, after_failures(tat, rate, now))
            if key in self._pending or len(self._pending) < MAX_PENDING:
                self._pending[key] = self._pending.get(key, Failures()).and_one(rate, now)
        self._wake.set()
        return longest

    async def _keep_writing(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                key = next(iter(self._pending))
                try:
                    await self._write(key, self._pending.pop(key))
                except BusError as error:  # counted here all the same
                    log.warning("failures.not_written", error=str(error))
                    await asyncio.sleep(RETRY_S)

    async def _write(self, key: str, failures: Failures) -> None:
        while True:
            value, revision = await self._bucket.get(f"failed.{key}")
            tat = failures.moved(_tat(value))
            ttl_s = math.ceil(tat - self._clock()) + 1
            if ttl_s <= 1:
                return
            try:
                await self._bucket.put(f"failed.{key}", encode(Arrival(tat=tat)), expected=revision, ttl_s=ttl_s)
            except Conflict:
                continue
            return

    def _record(self, stored: Stored) -> None:
        tat = _tat(value_of(stored))
        key = stored.subject.rpartition(".")[2]
        # Never back: what failed here and is not written yet counts, too.
        self._keep(key, max(tat, self._tats.get(key, 0.0)))

    def _keep(self, key: str, tat: float) -> None:
        self._tats[key] = tat
        self._tats.move_to_end(key)
        now = self._clock()
        while self._tats and (len(self._tats) > MAX_KNOWN or next(iter(self._tats.values())) <= now):
            self._tats.popitem(last=False)


def _tat(value: bytes | None) -> float:
    if value is None:
        return 0.0
    try:
        return decode_arrival(value).tat
    except Malformed:
        return 0.0
