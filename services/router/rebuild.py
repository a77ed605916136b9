"""How a router comes to know every unfinished job: it follows JOBS, and looks up what ended before it came (DESIGN §3).

One consumer for each kind of record: nats-server is slow with several filters over a stream with many erased messages
(12,000 records beside 45,000 erased: 5 s in one consumer, 0.3 s in four). `done` is followed only from where the rebuild
began, so that a day's finished jobs need not be read. Those whose request is kept for a retry look unfinished then; their
`done` is looked up before anything is bound, or each would take a slot for as long as a lost compare-and-set takes.

Meanwhile Python's cyclic garbage collector stands still: it would look through all jobs again and again, a quarter of the CPU
time of 100,000, and finds nothing, since records hold no cycles. What was built is left out of its later rounds, too.
"""

import asyncio
import gc
from collections.abc import Callable

import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.follower import Followers
from libs.common.bus.stored import Stored
from libs.common.contracts import subjects
from libs.common.contracts.streams import JOBS
from services.router.index import Index

log = structlog.get_logger()

LOOK_AT_ONCE = 250  # `done` records come with their bodies, a few kB each, at most 512
LOOK_S = 5.0
REST_S = 60.0  # of the garbage collector, at most: who waits for NATS for an hour makes garbage


class Rebuild:
    def __init__(
        self, bus: Bus, index: Index, on_record: Callable[[Stored], None], forget: Callable[[], None], last: int
    ) -> None:
        """`on_record` folds a record into the index, `forget` forgets all of them; `last`: the last sequence of JOBS when the
        rebuild began."""
        self._bus = bus
        self._index = index
        self._on_record = on_record
        self._forget = forget
        self._wanted = asyncio.Event()
        self._looked = False
        self.jobs = jobs = Followers(self._reset)
        jobs.add("new", bus, JOBS, subjects.NEW, on_record, headers_only=True)
        jobs.add("active", bus, JOBS, subjects.ACTIVE, on_record, headers_only=True)
        # Marks that find no job are kept in a bounded number only: by then all that they can mean have come.
        jobs.add("cancels", bus, JOBS, subjects.CANCELS, on_record, headers_only=True, after=("new", "active"))
        jobs.add("done", bus, JOBS, subjects.DONE, on_record, headers_only=True, from_sequence=last + 1)

    @property
    def complete(self) -> bool:
        """Every unfinished job is known: the router may act."""
        return self._looked and self.jobs.caught_up

    def problem(self) -> str | None:
        """For /readyz."""
        return None if self.complete else "the unfinished jobs are not all known yet"

    async def run(self) -> None:
        """Endless: once, and again whenever everything had to be forgotten."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                await self.jobs.wait_caught_up()
                try:
                    await self._look_up_ended()
                except BusError as error:  # it saves time, no more: a compare-and-set on a job that has ended fails
                    log.info("rebuild.not_looked_up", error=str(error))
                self._looked = not self._wanted.is_set()
                if self._looked:
                    gc.freeze()
                    gc.enable()
        finally:
            gc.enable()

    def _reset(self) -> None:
        self._looked = False
        self._wanted.set()
        gc.unfreeze()  # what was known until now may be garbage
        gc.disable()
        asyncio.get_running_loop().call_later(REST_S, gc.enable)
        self._forget()

    async def _look_up_ended(self) -> None:
        keys = list(self._index.jobs)
        for at in range(0, len(keys), LOOK_AT_ONCE):
            wanted = [subjects.record(key, "done") for key in keys[at : at + LOOK_AT_ONCE]]
            found = await self._bus.last_of_each(JOBS, wanted, timeout=LOOK_S)
            if self._wanted.is_set():
                return
            for stored in found:
                self._on_record(stored)
