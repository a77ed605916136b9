"""The router's shell: looks at everything a few times a second, and at once when something came in; asks the pure parts what
to do, and has it done.

Everything runs on one event loop, so nothing is locked. What needs a round trip runs as a task of its own, one at a time per
job (`Deeds`). `Board` owns what is known, `Intake` brings news to it, `Dispatcher` and `Reclaimer` act on jobs, `Reconciler`
finds what was missed.
"""

import asyncio
import time
from collections.abc import Callable

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError, Full
from libs.common.bus.link import Message
from libs.common.contracts.codec import encode
from libs.common.contracts.control import EraseAnswer, decode_erase
from libs.common.contracts.subjects import JobKey
from libs.common.journal import Journal, Lost
from services.router import metrics
from services.router.board import Board
from services.router.clock import ServerClock
from services.router.deeds import Deeds
from services.router.dispatcher import Dispatcher
from services.router.enquiries import Enquiries
from services.router.fleet import Liveness
from services.router.gatherer import Gatherer
from services.router.intake import Intake
from services.router.loader import Loader
from services.router.look import Look
from services.router.orders import Orders
from services.router.pings import Pings
from services.router.queue import PendingQueue
from services.router.readers import Readers
from services.router.reclaimer import Reclaimer
from services.router.reconciler import Reconciler
from services.router.settle import Enqueue, settle
from services.router.strays import Strays
from services.router.tidier import Tidier
from services.router.transitions import Transitions
from services.router.wishes import Loading, Pause, Placement

TICK_S = 0.25
HOLD_S = (
    0.01  # a look that takes longer goes on after everybody else had a turn: a large empty fleet takes a second to fill
)
RETRY_MS = 1000  # after a deed that NATS did not let through


class Router:
    def __init__(self, bus: Bus, clock: ServerClock, is_active: Callable[[], bool]) -> None:
        self._bus = bus
        self._clock = clock
        self._is_active = is_active
        self._woken = asyncio.Event()
        self._paused_until = 0.0
        self.regained_at = 0.0  # monotonic; the lease, by this same process

        wake = self._woken.set
        self.board = board = Board(clock, wake)
        self.index, self.fleet, self.scheduler = board.index, board.fleet, board.scheduler
        self._journal = Journal(bus)
        self._transitions = Transitions(bus, clock)
        self._orders = Orders(bus)
        self._gatherer = Gatherer(bus)
        self._deeds = Deeds(self._after_deed)
        self._loader = Loader(self.scheduler, self._orders, wake)
        self._tidier = Tidier(self.index, self._transitions, self._deeds, wake)
        self.reclaimer = Reclaimer(board, self._transitions, self._gatherer, clock)
        self.dispatcher = Dispatcher(
            board, self._transitions, self._orders, self._loader, self.reclaimer, self._journal, clock
        )
        self.reconciler = Reconciler(
            board, self._deeds, self.dispatcher, self.reclaimer,
            Readers(board, self._deeds, self._gatherer, wake),
            Strays(board, self._deeds, self._journal, self._orders), clock, self._hearing_since,
        )  # fmt: skip
        self.intake = Intake(board, self.reclaimer, self._deeds, wake)
        self.enquiries = Enquiries(self.scheduler, self._look, clock)
        self.pings = Pings(bus, self.fleet, self._orders, wake)

    @property
    def queue(self) -> PendingQueue:
        return self.board.queue

    def reset(self) -> None:
        """Every record is about to come anew."""
        self.board.reset()
        self.reconciler.reset()

    async def erase(self, message: Message) -> bytes:
        wish = decode_erase(message.data)
        reason = await self._transitions.erase(wish)
        return encode(EraseAnswer(erased=reason is None, reason=reason or ""))

    async def run(self) -> None:
        """Endless."""
        looked_at = 0.0
        try:
            while True:
                # Not self._woken.wait() under a timeout: that costs two tasks a turn.
                self._woken.clear()
                now = time.monotonic()
                if due := now - looked_at >= TICK_S:
                    looked_at = now
                    self._measure(now)
                if self._is_active() and self._bus.connected and now >= self._paused_until:
                    if due:
                        self.reconciler.tick(now)
                    is_done = self._schedule(now)
                    self._tidier.tidy()
                    if not is_done:
                        await asyncio.sleep(0)
                        continue
                try:
                    async with asyncio.timeout(TICK_S):
                        await self._woken.wait()
                except TimeoutError:
                    pass
        finally:
            self._deeds.cancel_all()

    def _hearing_since(self) -> float:
        """Since when silence of a node means something: not before this router's own connection was there, and not before
        a lease that it had lost was its own again, because NATS may have stood still without breaking the connection."""
        return max(self._bus.connected_at, self.regained_at)

    def _look(self) -> Look:
        return Look(self.scheduler, time.monotonic(), self._clock.now_ms(), self._hearing_since())

    def _schedule(self, now: float) -> bool:
        """Give slots to those who wait, and load what they will ask for. False: not done, but others wait for the loop."""
        look = Look(self.scheduler, now, self._clock.now_ms(), self._hearing_since())
        while True:
            with metrics.decide_seconds.time():
                wish = look.step()
            if wish is None:
                return True
            if not isinstance(wish, Pause):
                self._carry_out(wish, now)
            if time.monotonic() - now >= HOLD_S:
                return False

    def _carry_out(self, wish: Placement | Loading, now: float) -> None:
        if isinstance(wish, Loading):
            wish.node.preload(wish.model, wish.order)
            self._deeds.spawn(self._loader.load(wish))
            return
        key = wish.job.key
        job = self.index.jobs.get(key)
        if (
            job is None
            or job.bound
            or key in self._deeds.busy
            or not isinstance(settle(job, self._clock.now_ms()), Enqueue)
        ):
            self.scheduler.discard(key)
            if job is not None and key not in self._deeds.busy:
                self.board.place(job)
            return
        wish.node.reserve((key, job.sequence), wish.hold)
        self.scheduler.commit(wish, now)
        self._deeds.do(key, self.dispatcher.bind(job, wish))

    def _after_deed(self, key: JobKey, trouble: BusError | None) -> None:
        if isinstance(trouble, Lost):
            self.board.adopt(key, trouble.newest)
            trouble = None
        if isinstance(trouble, Full):  # that holds for every job
            self._paused_until = time.monotonic() + RETRY_MS / 1000
        if (job := self.index.jobs.get(key)) is not None:
            if trouble is None or job.bound:
                self.board.place(job)  # a deed that came to nothing left it nowhere
            else:  # not at once again: the two would keep each other busy
                self.board.put_off(key, self._clock.now_ms() + RETRY_MS)
        self._woken.set()

    def _measure(self, now: float) -> None:
        metrics.active.set(1 if self._is_active() else 0)
        metrics.jobs.labels("queued").set(len(self.index.jobs) - len(self.board.bound))
        metrics.jobs.labels("bound").set(len(self.board.bound))
        alive = [view.liveness(now, self._hearing_since()) for view in self.fleet.nodes.values()]
        for liveness in Liveness:
            metrics.nodes.labels(str(liveness)).set(alive.count(liveness))
