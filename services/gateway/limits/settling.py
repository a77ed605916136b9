"""Open reservations meet what became of their jobs. Everything that is needed stands in the job's folder, so whichever gateway
looks settles, and the ledger's compare-and-set lets only one of them count.

A hint that a job has ended makes its own gateway look at once. What that misses (a hint that got lost, a gateway that died) is
found by the sweep: now and then, and whenever a reservation stands in somebody's way.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.link import Message, Subscription
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed
from libs.common.contracts.jobs import Binding, Completion, decode_hint
from libs.common.contracts.streams import JOBS
from libs.common.contracts.subjects import JobKey
from libs.common.folder import Facts, facts_of
from libs.common.journal import Journal
from libs.common.states import JobState
from services.gateway.limits import budgets, metrics
from services.gateway.limits.budgets import NEVER_STORED_MINUTES, Open, Uncounted
from services.gateway.limits.keeper import Apply, Keeper
from services.gateway.limits.ledger import Ledger
from services.gateway.limits.rolling import Instant

log = structlog.get_logger()

SWEEP_S = (15.0, 30.0)
AT_MOST_EVERY_S = 1.0  # of one account, however many are refused
TOGETHER = 20  # jobs asked about at once: their records come with their bodies


class Finding(NamedTuple):
    """What is known of an open reservation's job. `spent` None: nobody knows any more. `how` empty: it is not over."""

    how: str = ""
    spent: int | Uncounted | None = 0
    started: bool = False


def judge(op_id: str, facts: Facts | None) -> Finding:
    """By one record of the folder. Pure."""
    match facts:
        case Completion():
            return Finding("sweep", budgets.cost(facts) if facts.job.op_id == op_id else 0)
        case Binding():
            if facts.job.op_id != op_id:
                return Finding("absent")
            return Finding(started=facts.node is not None)
        case None:
            return Finding("absent")
    return Finding() if facts.op_id == op_id else Finding("absent")


class _Expected(NamedTuple):
    keeper: Keeper
    op_id: str


class Settling:
    """`run` must be running."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._journal = Journal(bus)
        self._expected: dict[str, dict[str, list[_Expected]]] = {}  # by client and job
        self._listening: dict[str, Subscription] = {}
        self._ended: asyncio.Queue[JobKey] = asyncio.Queue()
        self._started: asyncio.Queue[JobKey] = asyncio.Queue()
        # op_ids of jobs that were seen in their folders: they do not vanish before their time
        self._stored: set[str] = set()
        self._swept_at: dict[str, float] = {}

    async def run(self) -> None:
        """Settles until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_ends(), name="limits.ends")
            tasks.create_task(self._follow_starts(), name="limits.starts")

    async def expect(self, keeper: Keeper, key: JobKey, op_id: str) -> None:
        """This job holds a reservation from now on. Before it is stored, so that no hint is missed."""
        if key.client not in self._listening:
            self._listening[key.client] = await self._bus.subscribe(subjects.hints_of_client(key.client), self._hear)
        self._expected.setdefault(key.client, {}).setdefault(key.job, []).append(_Expected(keeper, op_id))

    async def absent(self, keeper: Keeper, op_id: str) -> None:
        """The job was not stored. Raises BusError."""
        await self._settle(keeper, op_id, Finding("absent"))

    async def sweep(self, keeper: Keeper, now: Instant) -> bool:
        """Looks at all of an account's open reservations; False: somebody did a moment ago. Raises BusError."""
        if time.monotonic() - self._swept_at.get(keeper.account, float("-inf")) < AT_MOST_EVERY_S:
            return False
        self._swept_at[keeper.account] = time.monotonic()
        await keeper.refresh()
        assert keeper.ledger is not None
        found = list(keeper.ledger.tokens.open.items())
        for some in _portions(found):
            await self._look(keeper, some, now)
        return True

    def forget(self, keeper: Keeper) -> None:
        self._swept_at.pop(keeper.account, None)

    async def tidy(self, keepers: Iterable[Keeper]) -> None:
        """Drops what no ledger holds any more, and stops to listen for clients of which nothing is expected."""
        still = {op for keeper in keepers if keeper.ledger for op in keeper.ledger.tokens.open}
        self._stored &= still
        for client, jobs in list(self._expected.items()):
            for job, expected in list(jobs.items()):
                if not any(each.op_id in still for each in expected):
                    del jobs[job]
            if not jobs:
                del self._expected[client]
                if (subscription := self._listening.pop(client, None)) is not None:
                    await subscription.stop()

    # -- hints ---------------------------------------------------------------------------------------------------------

    def _hear(self, message: Message) -> None:
        with contextlib.suppress(Malformed, ValueError):
            key = subjects.parse_hint(message.subject)
            if key.job not in self._expected.get(key.client, {}):
                return
            state = decode_hint(message.data).state
            if state.final:
                self._ended.put_nowait(key)
            elif state is JobState.BOUND:
                self._started.put_nowait(key)

    async def _follow_ends(self) -> None:
        while True:
            keys = await _some(self._ended)
            await asyncio.gather(*(self._end(key) for key in keys))

    async def _end(self, key: JobKey) -> None:
        """What cannot be read or written now is left to the sweep."""
        try:
            entry = await self._journal.newest(key)
            if entry is None or not isinstance(entry.facts, Completion):
                return
            expected = self._expected.get(key.client, {}).pop(key.job, [])
            for keeper, op_id in expected:
                await self._settle(keeper, op_id, judge(op_id, entry.facts)._replace(how="hint"))
        except (BusError, Malformed) as error:
            log.debug("limits.settle_later", job_id=key.job, error=str(error))

    async def _follow_starts(self) -> None:
        while True:
            keys = await _some(self._started)
            await asyncio.gather(*(self._start(key) for key in keys))

    async def _start(self, key: JobKey) -> None:
        """What cannot be read or written now is left to the sweep."""
        for keeper, op_id in self._expected.get(key.client, {}).get(key.job, []):
            if keeper.limits.queued:
                try:
                    await keeper.change(_start(op_id))
                except (BusError, Malformed) as error:
                    log.debug("limits.start_later", job_id=key.job, error=str(error))

    # -- the sweep -----------------------------------------------------------------------------------------------------

    async def _look(self, keeper: Keeper, some: list[tuple[str, Open]], now: Instant) -> None:
        minute = now.earliest // 60_000
        client = keeper.client
        asked = [
            subjects.record(JobKey(client, reserved.job), name) for _, reserved in some for name in ("active", "done")
        ]
        records: dict[str, Facts] = {}
        for stored in await self._bus.last_of_each(JOBS, asked):
            key, name = subjects.parse_record(stored.subject)
            facts = facts_of(stored.subject, stored.headers)
            if facts is not None and (name == "done" or key.job not in records):
                records[key.job] = facts
        for op_id, reserved in some:
            finding = Finding()
            if reserved.job in records:
                finding = judge(op_id, records[reserved.job])
            elif minute >= reserved.gone:
                finding = Finding("unknown", None)
            elif minute >= reserved.minute + NEVER_STORED_MINUTES and op_id not in self._stored:
                entry = await self._journal.newest(JobKey(client, reserved.job))
                finding = judge(op_id, entry.facts if entry else None)
                if not finding.how:
                    self._stored.add(op_id)
            if finding.how:
                await self._settle(keeper, op_id, finding)
            elif finding.started and reserved.waits:
                await keeper.change(_start(op_id))

    async def _settle(self, keeper: Keeper, op_id: str, finding: Finding) -> None:
        def settle(draft: Ledger, now: Instant) -> tuple[bool, bool]:
            settled = budgets.settle(draft.tokens, op_id, finding.spent)
            return settled, settled

        if await keeper.change(settle):
            metrics.settlements.labels(finding.how).inc()


def _start(op_id: str) -> Apply[None]:
    def start(draft: Ledger, now: Instant) -> tuple[None, bool]:
        return None, budgets.started(draft.tokens, op_id)

    return start


def _portions(found: list[tuple[str, Open]]) -> Iterator[list[tuple[str, Open]]]:
    for begin in range(0, len(found), TOGETHER):
        yield found[begin : begin + TOGETHER]


async def _some(queue: "asyncio.Queue[JobKey]") -> list[JobKey]:
    """What is there, and at least one."""
    found = [await queue.get()]
    while not queue.empty() and len(found) < TOGETHER:
        found.append(queue.get_nowait())
    return found


def pause() -> float:
    return random.uniform(*SWEEP_S)
