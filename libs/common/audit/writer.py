"""Writing the trail: `record` takes what happened at once, a task writes it in order, acked and chained.

Metrics, in every service that keeps a trail:

| name                          | type    | labels | meaning                                                          |
|-------------------------------|---------|--------|------------------------------------------------------------------|
| arriero_audit_written_total   | counter |        | records stored                                                   |
| arriero_audit_dropped_total   | counter |        | records lost because too many waited; the next one says how many |
| arriero_audit_waiting         | gauge   |        | records taken and not stored yet                                 |
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

import structlog
from prometheus_client import Counter, Gauge

from libs.common.audit.chain import START, STOP, Link, chained, clean, clean_address, digest
from libs.common.audit.folding import Folding
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError, Conflict, Unconfirmed
from libs.common.contracts import subjects
from libs.common.contracts.audit import AuditRecord, Result
from libs.common.contracts.headers import EXPECTED_SEQUENCE
from libs.common.contracts.streams import AUDIT

log = structlog.get_logger()

WAITING = 10_000  # records; more are dropped and counted
FOLD_EVERY_S = 1.0
RETRY_S = (0.05, 0.1, 0.25, 0.5, 1.0)
LATE_S = 30.0  # a record that waits for longer while NATS is there: something is wrong that a human must mend
STALE_READS = 8  # in a row, before a refused write whose cause cannot be read is believed to be somebody else's record

written = Counter("arriero_audit_written", "Records of the audit trail stored")
lost = Counter("arriero_audit_dropped", "Records of the audit trail lost because too many waited")
waiting = Gauge("arriero_audit_waiting", "Records of the audit trail not stored yet")


class Audit:
    """`run` must be running. One for each process: `writer` is a name that no other life of any process has."""

    def __init__(
        self, bus: Bus, service: str, writer: str, *, limit: int = WAITING, clock: Callable[[], float] = time.time
    ) -> None:
        self.subject = subjects.audit(service, writer)
        self._bus = bus
        self._limit = limit
        self._clock = clock
        self._queue: deque[AuditRecord] = deque()
        self._folding = Folding()
        self._dropped = 0
        self._last = Link()
        self._newest = 0  # the sequence of the subject's newest record: ours, unless somebody else wrote there
        self._wake = asyncio.Event()
        self._problem: str | None = None  # why the oldest record cannot be stored
        self._stuck_since = 0.0
        self._closed = False
        self._idle = asyncio.Event()  # everything is stored
        self._own(START)

    def record(
        self,
        action: str,
        result: Result | str,
        *,
        actor: str = "",
        credential: str = "",
        address: str = "",
        target: str = "",
        reason: str = "",
        request_id: str = "",
        folded: bool = False,
    ) -> None:
        """Never waits, never raises. Of equal refusals within a minute the first is written and the others are counted;
        `folded`: whatever the result. Never give it a prompt, an answer or a secret; `credential` is an id."""
        try:
            made = AuditRecord(
                n=0,
                at_ms=int(self._clock() * 1000),
                action=clean(action),
                result=Result(result),
                actor=clean(actor),
                credential=clean(credential),
                address=clean_address(address),
                target=clean(target),
                reason=clean(reason),
                request_id=clean(request_id),
            )
            if folded or made.result is Result.DENIED:
                first = self._folding.add(made)
                if first is None:
                    return
                made = first
            self._take(made)
        except Exception as error:  # noqa: BLE001  # whoever asks for a record has its own work to do; a traceback might quote what it gave
            log.error("audit.record_unmade", action=str(action)[:50], error=type(error).__name__)

    async def run(self) -> None:
        """Writes until cancelled."""
        while True:
            try:
                async with asyncio.timeout(FOLD_EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            for told in self._folding.due(int(self._clock() * 1000)):
                self._take(told)
            while self._queue:
                await self._store(self._queue[0])
                self._queue.popleft()
                waiting.set(len(self._queue))
            self._idle.set()

    async def close(self, *, within: float = 3.0) -> None:
        """What was counted is told, then a record says that this chain ends here. Comes back when all is stored, or after so
        many seconds. What still happens until the ports are closed is recorded behind it."""
        if self._closed:
            return
        self._closed = True
        for told in self._folding.due(int(self._clock() * 1000), all_of_them=True):
            self._take(told)
        self._own(STOP)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), within)

    @property
    def sequence(self) -> int:
        """Of the newest record stored."""
        return self._last.sequence

    def check(self) -> str | None:
        """For /readyz: what cannot be recorded must not be done."""
        if len(self._queue) >= self._limit:
            return f"{len(self._queue)} records of the audit trail wait to be stored: {self._problem or 'too many at once'}"
        if self._problem and self._bus.connected and time.monotonic() - self._stuck_since > LATE_S:
            return f"the audit trail cannot be written: {self._problem}"
        return None

    def _own(self, action: str) -> None:
        self._queue.append(AuditRecord(n=0, at_ms=int(self._clock() * 1000), action=action, result=Result.ALLOWED))
        self._idle.clear()
        self._wake.set()

    def _take(self, record: AuditRecord) -> None:
        if len(self._queue) >= self._limit:
            self._dropped += 1
            lost.inc()
            return
        self._queue.append(record)
        self._idle.clear()
        waiting.set(len(self._queue))
        self._wake.set()

    async def _store(self, record: AuditRecord) -> None:
        """Until it is stored. Its bytes stay the same over all attempts, so that it can be known again."""
        dropped = self._dropped
        payload = chained(record, self._last, dropped=dropped)
        sequence = await self._append(payload)
        self._dropped -= dropped
        self._last = Link(self._last.n + 1, sequence, digest(payload))
        self._newest = sequence
        self._problem = None
        written.inc()

    async def _append(self, payload: bytes) -> int:
        """A compare-and-set on this writer's subject: a lost ack cannot store it twice."""
        failures = stale = 0
        while True:
            try:
                headers = {EXPECTED_SEQUENCE: str(self._newest)}
                return (await self._bus.append(self.subject, payload, headers=headers)).sequence
            except (Conflict, Unconfirmed) as error:
                self._say(error)
                try:
                    stored = await self._bus.newest_of(AUDIT, self.subject)
                except BusError as unread:
                    self._say(unread)
                else:
                    if stored is not None and stored.data == payload:
                        return stored.sequence
                    stale += isinstance(error, Conflict)
                    newest = stored.sequence if stored is not None else 0
                    if isinstance(error, Conflict) and (newest > self._newest or stale >= STALE_READS):
                        # Nobody else may write here, and nothing may be deleted. The trail goes on; `verify` will name it.
                        log.error("audit.chain_disturbed", subject=self.subject, expected=self._newest, found=newest)
                        self._newest, stale = newest, 0
            except BusError as error:
                self._say(error)
            await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
            failures += 1

    def _say(self, error: BusError) -> None:
        if self._problem is None:
            self._stuck_since = time.monotonic()
            log.warning("audit.not_stored", error=str(error))
        self._problem = str(error)
