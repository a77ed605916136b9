"""The router's shell: folds what comes in, asks the pure parts what to do, and does it.

One owner of index, queue and fleet; everything runs on one event loop, so nothing is locked. What needs a round trip runs
as a task of its own, one at a time per job (`_busy`). Whatever was missed is found again by `_tick`, like a controller:
four times a second it looks at what is bound or has to end, and at a slice of all the rest; hints only make it quicker.
"""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from libs.common.bus.buckets import value_of
from libs.common.bus.connection import Bus, Message, Stored
from libs.common.bus.failures import BusError, Full
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.control import (
    EraseAnswer,
    RunAnswer,
    RunStatus,
    decode_erase,
    decode_free,
)
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.headers import FACTS
from libs.common.contracts.jobs import Binding, Completion, Submission, decode_cancel_mark
from libs.common.contracts.nodes import canonical_model, decode_heartbeat
from libs.common.contracts.streams import MODELS
from libs.common.contracts.subjects import JobKey
from libs.common.folder import Entry, facts_of
from libs.common.journal import Journal, Lost
from libs.common.states import JobState
from services.router import metrics
from services.router.asking import place_of, real_cost
from services.router.clock import ServerClock
from services.router.deeds import Deeds
from services.router.enquiries import Enquiries
from services.router.fleet import Fleet, Hold, Liveness, NodeView, RunKey
from services.router.gatherer import Gatherer
from services.router.index import Index, Job, Leftover
from services.router.loader import Loader
from services.router.look import Loading, Look, Placement
from services.router.orders import Orders
from services.router.queue import PendingQueue
from services.router.residency import Stay
from services.router.scheduler import Scheduler
from services.router.settle import End, Enqueue, Gather, Wait, counts, settle
from services.router.transitions import Transitions

log = structlog.get_logger()

TICK_S = 0.25
HOLD_S = (
    0.01  # a look that takes longer goes on after everybody else had a turn: a large empty fleet takes a second to fill
)
ASK_S = 1.0  # between two questions about the same run
PING_S = 1.0
OVERDUE_S = 20.0  # after its deadline a run that its worker did not end is taken away
STRAY_S = 3.0  # a run in a heartbeat that the index does not know: normal for a moment
UNWATCHED_S = 30.0  # two looks so far apart, and nobody reads: the job is cancelled
TIDY_AT_ONCE = 64
TIDY_RETRY_S = 5.0
SWEEP_AT_ONCE = 1000  # jobs of the whole index looked at per tick: 20,000 in five seconds, a millisecond each time
RETRY_MS = 1000  # after a deed that NATS did not let through
FRESH_MS = 60_000  # a submission older than this was read at a rebuild, and says nothing of what is asked for now


@dataclass(slots=True)
class Care:
    """When this process last did what about an unfinished job (monotonic seconds); forgotten with it."""

    asked_at: float = -ASK_S  # the worker, about its run
    told_at: float = -ASK_S  # the worker, that it is cancelled
    looked_at: float | None = None  # for readers
    unwatched_since: float | None = None


class Router:
    def __init__(self, bus: Bus, clock: ServerClock, is_active: Callable[[], bool]) -> None:
        self.index = Index()
        self.fleet = Fleet()
        self.scheduler = Scheduler(self.fleet)
        self._bus = bus
        self._is_active = is_active
        self._journal = Journal(bus)
        self._clock = clock
        self._transitions = Transitions(bus, clock)
        self.regained_at = 0.0  # monotonic; the lease, by this same process
        self._wake = asyncio.Event()
        self._orders = Orders(bus)
        self._gatherer = Gatherer(bus)
        self._deeds = Deeds(self._after_deed)
        self._delayed: list[tuple[int, JobKey]] = []
        self._bound: dict[JobKey, Job] = {}
        self._due: dict[JobKey, Job] = {}  # to be gathered or ended
        self._waiting: set[JobKey] = set()  # not before a time that stands in `_delayed`
        self._care: dict[JobKey, Care] = {}
        self._stray_since: dict[RunKey, float] = {}
        self._to_sweep: deque[JobKey] = deque()
        self._tidying = 0
        self._paused_until = 0.0
        self.enquiries = Enquiries(self.scheduler, self._look, clock)
        self._loader = Loader(self.scheduler, self._orders, self._wake.set)

    @property
    def queue(self) -> PendingQueue:
        return self.scheduler.queue

    @property
    def _hearing_since(self) -> float:
        """Since when silence of a node means something: not before this router's own connection was there, and not before
        a lease that it had lost was its own again, because NATS may have stood still without breaking the connection."""
        return max(self._bus.connected_at, self.regained_at)

    # -- what comes in -------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        self.index.clear()
        self.scheduler.clear()
        for table in (self._delayed, self._bound, self._due, self._waiting, self._care, self._to_sweep):
            table.clear()
        for view in self.fleet.nodes.values():
            for run in view.holds:
                view.doubt(run)

    def on_record(self, stored: Stored) -> None:
        """A record of `new`, `active`, `done` or a cancel mark, headers only."""
        try:
            key, record = subjects.parse_record(stored.subject)
            if record == "cancel":
                text = stored.headers.get(FACTS)
                facts: Any = decode_cancel_mark(text) if text else None
            else:
                facts = facts_of(stored.subject, stored.headers)
        except (Malformed, ValueError) as error:
            log.error("record.unreadable", subject=stored.subject, error=str(error))
            return
        self._fold(key, record, facts, stored.sequence, stored.at_ms)

    def on_catalog_record(self, stored: Stored) -> None:
        try:
            self.scheduler.pricing.catalog.fold(stored.subject.removeprefix(f"$KV.{MODELS}."), value_of(stored) or b"")
        except Malformed as error:
            log.error("catalog.unreadable", subject=stored.subject, error=str(error))
            return
        self._wake.set()

    def on_node_record(self, stored: Stored) -> None:
        if stored.data:
            self._on_heartbeat(stored.data, live=False)

    def on_heartbeat(self, message: Message) -> None:
        self._on_heartbeat(message.data, live=True)

    async def on_free(self, message: Message) -> None:
        try:
            free = decode_free(message.data)
        except Malformed as error:
            log.warning("free.malformed", error=str(error))
            return
        run = (JobKey(free.client, free.job), free.epoch)
        view = self.fleet.nodes.get(free.node)
        if view is not None and view.beat.boot == free.boot:
            view.release(run, free.changes)
        if free.given_back and (job := self._bound_as(run, free.boot)) is not None:
            self._deeds.do(job.key, self._requeue(job, free.epoch, free.fault, "given_back"))
        self._wake.set()

    async def erase(self, message: Message) -> bytes:
        wish = decode_erase(message.data)
        reason = await self._transitions.erase(wish)
        return encode(EraseAnswer(erased=reason is None, reason=reason or ""))

    def _on_heartbeat(self, data: bytes, *, live: bool) -> None:
        try:
            beat = decode_heartbeat(data)
        except Malformed as error:
            log.warning("heartbeat.malformed", error=str(error))
            return
        before = self.fleet.nodes.get(beat.node)
        if not self.fleet.hear(beat, time.monotonic(), live=live):
            return
        if self.fleet.nodes[beat.node] is not before:
            for job in self._bound.values():
                self._hold_slot(job)
        view = self.fleet.nodes[beat.node]
        self.scheduler.pricing.prefixes.keep_only(view.name, view.loaded | view.loading)
        self.scheduler.pricing.see(view)
        self._wake.set()

    def _fold(self, key: JobKey, record: str, facts: Any, sequence: int, at_ms: int) -> None:
        before = self._bound.get(key)
        held = before.binding if before else None
        known = key in self.index.jobs
        job = self.index.fold(key, record, facts, sequence, at_ms)
        if isinstance(facts, Completion) and known and key not in self.index.jobs:
            self._learn(key, facts)
        if job is not None:
            if record == "new" and self._clock.now_ms() - at_ms < FRESH_MS:
                self.scheduler.pricing.demand.asked(canonical_model(job.submission.model), time.monotonic())
            self._place(job)
            if record == "active":
                self._hold_slot(job)
        elif key not in self.index.jobs:
            self._drop(key)
        if held is not None and held.node in self.fleet.nodes and self._bound_as((key, held.epoch), held.boot) is None:
            self.fleet.nodes[held.node].doubt((key, held.epoch))
        self._wake.set()

    def _learn(self, key: JobKey, done: Completion) -> None:
        """From a job that has just ended."""
        self.queue.ended(key, time.monotonic(), weight=done.job.weight, tokens=real_cost(done))
        if done.state is not JobState.SUCCEEDED or done.node not in self.fleet.nodes:
            return
        self.fleet.nodes[done.node].succeeded()
        self.scheduler.learn(key.client, done)
        timings, decision = done.timings, done.decision
        if timings and decision and decision.ttft_s and timings.first_token is not None and timings.wait is not None:
            metrics.prediction_ratio.observe((timings.first_token - timings.wait) / decision.ttft_s)

    def _adopt(self, key: JobKey, newest: Entry | None) -> None:
        """Somebody else's record stands in the folder: it is the truth."""
        match newest.facts if newest else None:
            case Completion() as facts:
                record = "done"
            case Binding() as facts:
                record = "active"
            case Submission() as facts:
                record = "new"  # a later life of the id
            case None:
                self.index.forget(key)
                self._drop(key)
                return
        assert newest
        self._fold(key, record, facts, newest.sequence, newest.at_ms)

    def _place(self, job: Job) -> None:
        """Where an unfinished job belongs now: a node's, the queue's, or later's."""
        key = job.key
        self._bound.pop(key, None)
        self._due.pop(key, None)
        self._waiting.discard(key)
        if job.bound:
            self.scheduler.discard(key)
            self._bound[key] = job
            self.queue.serve(key, time.monotonic(), place_of(job, self.scheduler.pricing.rates)[0])
            return
        self.queue.ended(key, time.monotonic(), weight=job.submission.weight, tokens=0.0)
        match settle(job, self._clock.now_ms()):
            case Enqueue():
                self.scheduler.add(*place_of(job, self.scheduler.pricing.rates))
            case Wait(until_ms):
                self._wait(key, until_ms)
            case Gather() | End():
                self.scheduler.discard(key)
                self._due[key] = job  # `_tick` does it

    def _wait(self, key: JobKey, until_ms: int) -> None:
        self.scheduler.discard(key)
        self._due.pop(key, None)
        self._waiting.add(key)
        heapq.heappush(self._delayed, (until_ms, key))

    def _drop(self, key: JobKey) -> None:
        """The job has ended."""
        self.scheduler.discard(key)
        self.queue.ended(key, time.monotonic())
        self._waiting.discard(key)
        self._bound.pop(key, None)
        self._due.pop(key, None)
        self._care.pop(key, None)

    def _hold_slot(self, job: Job) -> None:
        """A binding takes a slot, whoever made it, before its worker has said a word about it."""
        binding = job.binding
        if binding is None or binding.node is None or (view := self.fleet.nodes.get(binding.node)) is None:
            return
        if view.beat.boot == binding.boot:
            hold = Hold(canonical_model(job.submission.model))
            if binding.decision and binding.decision.ttft_s is not None:  # times as whoever bound it predicted them
                began = time.monotonic() - max(0, self._clock.now_ms() - job.bound_ms) / 1000
                hold.ready_at = began + binding.decision.load_s
                hold.ends_at = began + binding.decision.ttft_s + self.scheduler.pricing.work(hold.model)
            view.reserve((job.key, binding.epoch), hold)

    # -- what goes out -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Endless: look at everything a few times a second, and at once when something came in."""
        looked_at = 0.0
        try:
            while True:
                # Not self._wake.wait() under a timeout: that costs two tasks a turn.
                self._wake.clear()
                now = time.monotonic()
                if due := now - looked_at >= TICK_S:
                    looked_at = now
                    self._measure(now)
                if self._is_active() and self._bus.connected and now >= self._paused_until:
                    if due:
                        self._tick(now)
                    is_done = self._schedule(now)
                    self._tidy()
                    if not is_done:
                        await asyncio.sleep(0)
                        continue
                try:
                    async with asyncio.timeout(TICK_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            self._deeds.cancel_all()

    async def ping_nodes(self) -> None:
        """Endless: a process that was killed is noticed by its silence within three pings."""
        while True:
            views = [view for view in self.fleet.nodes.values() if not view.gone] if self._bus.connected else []
            await asyncio.gather(asyncio.sleep(PING_S), *(self._ping(view) for view in views))

    async def _ping(self, view: NodeView) -> None:
        answered, nobody = await self._orders.ping(view)
        if self.fleet.ping_result(view.name, view.beat.boot, answered=answered, nobody=nobody):
            log.warning("node.gone", node=view.name, boot=view.beat.boot)
            self._wake.set()

    def _look(self) -> Look:
        return Look(self.scheduler, time.monotonic(), self._clock.now_ms(), self._hearing_since)

    def _schedule(self, now: float) -> bool:
        """Give slots to those who wait, and load what they will ask for. False: not done, but others wait for the loop."""
        wanted = self.scheduler.wanted(now, self._clock.now_ms(), self._hearing_since)
        while True:
            with metrics.decide_seconds.time():
                wish = next(wanted, None)
            if wish is None:
                return True
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
                self._place(job)
            return
        wish.node.reserve((key, job.sequence), wish.hold)
        self.scheduler.commit(wish, now)
        self._deeds.do(key, self._bind(job, wish))

    def _tick(self, now: float) -> None:
        self.queue.rise(self._clock.now_ms())
        self.fleet.bury(now, self._hearing_since)
        while self._delayed and self._delayed[0][0] <= self._clock.now_ms():
            _, key = heapq.heappop(self._delayed)
            if (delayed := self.index.jobs.get(key)) is not None:
                self._place(delayed)
        for job in list(self._bound.values()):
            if job.key not in self._deeds.busy:
                self._look_at_bound(job, now)
        for job in list(self._due.values()):
            if job.key not in self._deeds.busy:
                self._look_at_unbound(job)
        self._sweep(now)
        self._look_for_strays(now)
        self._look_for_empty_holds()

    def _sweep(self, now: float) -> None:
        """A slice of everything, in turn: deadlines, readers, and whatever fell through is put back where it belongs."""
        if not self._to_sweep:
            self._to_sweep.extend(self.index.jobs)
        now_ms = self._clock.now_ms()
        for _ in range(min(SWEEP_AT_ONCE, len(self._to_sweep))):
            job = self.index.jobs.get(self._to_sweep.popleft())
            if job is None:
                continue
            if job.key in self.queue:
                if now_ms >= job.deadline_ms:
                    self._place(job)
            elif not any(job.key in placed for placed in (self._bound, self._waiting, self._due, self._deeds.busy)):
                log.error("job.misplaced", job_id=job.key.job)
                self._place(job)
            if not job.submission.detached:
                self._look_for_readers(job, now)

    def _look_at_unbound(self, job: Job) -> None:
        match settle(job, self._clock.now_ms()):
            case Gather():
                self._deeds.do(job.key, self._gather(job))
            case End(state, fault):
                self._deeds.do(job.key, self._end(job, state, fault))
            case Enqueue() | Wait():
                self._place(job)

    def _look_at_bound(self, job: Job, now: float) -> None:
        binding = job.binding
        assert binding is not None
        assert binding.node is not None
        assert binding.boot is not None
        run = (job.key, binding.epoch)
        if not self.fleet.alive_boot(binding.node, binding.boot, now, self._hearing_since):
            fault = Fault(code=Code.NODE_FAILED, message=f"node {binding.node} went away")
            self._deeds.do(job.key, self._requeue(job, binding.epoch, fault, "node_gone"))
            return
        if self._clock.now_ms() > job.deadline_ms + OVERDUE_S * 1000:
            self._deeds.do(job.key, self._requeue(job, binding.epoch, None, "overdue"))
            return
        care = self._care_of(job)
        if job.cancel is not None and now - care.told_at >= ASK_S:
            care.told_at = now
            self._deeds.spawn(self._tell_cancel(job, binding))
        view = self.fleet.nodes.get(binding.node)
        if view is None or run in view.listed:
            return
        hold = view.holds.get(run)
        if (hold is None or hold.confirmed is None) and now - care.asked_at >= ASK_S:
            self._deeds.do(job.key, self._order(job, binding))

    def _care_of(self, job: Job) -> Care:
        return self._care.setdefault(job.key, Care())

    def _look_for_readers(self, job: Job, now: float) -> None:
        """A chat job that nobody reads and nobody wants kept is cancelled: its client and its gateway are both gone."""
        care = self._care_of(job)
        if care.looked_at is None:
            care.looked_at = now
        elif job.cancel is None and now - care.looked_at >= UNWATCHED_S:
            care.looked_at = now
            self._deeds.spawn(self._ask_for_readers(job, care, now))

    async def _ask_for_readers(self, job: Job, care: Care, now: float) -> None:
        try:
            watched = await self._gatherer.watched(job.key)
        except BusError:
            watched = True  # not known, so nothing is held against it
        if watched:
            care.unwatched_since = None
        elif care.unwatched_since is None:
            care.unwatched_since = now
        elif self.index.jobs.get(job.key) is job and job.cancel is None:
            job.cancel = "nobody reads the answer any more"
            self._place(job)
            self._wake.set()

    def _look_for_strays(self, now: float) -> None:
        """What runs but is not bound so is stopped, after a look at the leader: this router's view may be old."""
        seen: set[RunKey] = set()
        for view in self.fleet.nodes.values():
            if view.gone:
                continue
            for run in view.listed:
                if run in view.freed or self._bound_as(run, view.beat.boot) is not None:
                    continue
                seen.add(run)
                if now - self._stray_since.setdefault(run, now) >= STRAY_S and run[0] not in self._deeds.busy:
                    self._stray_since[run] = now
                    self._deeds.do(run[0], self._stop_stray(view.name, view.beat.boot, run))
        for run in [run for run in self._stray_since if run not in seen]:
            del self._stray_since[run]

    def _look_for_empty_holds(self) -> None:
        """A slot that is held for a run which is not bound so any more, and of which its worker never said a word."""
        for view in self.fleet.nodes.values():
            for run, hold in view.holds.items():
                if (
                    hold.confirmed is None
                    and run[0] not in self._deeds.busy
                    and not self._bound_as(run, view.beat.boot)
                ):
                    view.doubt(run)

    def _tidy(self) -> None:
        """Keep some on their way, for as long as there are any."""
        while self._tidying < TIDY_AT_ONCE and (next_one := self.index.take_leftover()) is not None:
            self._tidying += 1
            self._deeds.spawn(self._tidy_one(*next_one))

    async def _tidy_one(self, key: JobKey, leftover: Leftover) -> None:
        try:
            await self._transitions.tidy(key, leftover)
        except BusError as error:
            log.debug("tidy.delayed", job_id=key.job, error=str(error))
            await asyncio.sleep(TIDY_RETRY_S)
            self.index.put_back(key, leftover)
        finally:
            self._tidying -= 1
            if self.index.leftovers:
                self._wake.set()

    # -- deeds, each a task --------------------------------------------------------------------------------------------

    async def _bind(self, job: Job, placement: Placement) -> None:
        run = (job.key, job.sequence)
        try:
            binding, sequence = await self._transitions.bind(job, placement.node.beat.boot, placement.decision)
        except BaseException:
            placement.node.withdraw(run)
            raise
        metrics.binds.labels("yes" if placement.decision.cold else "no").inc()
        self._fold(job.key, "active", binding, sequence, self._clock.now_ms())
        await self._order(job, binding)

    async def _order(self, job: Job, binding: Binding) -> None:
        self._care_of(job).asked_at = time.monotonic()
        stays, evict = self._residency(job, binding)
        answer = await self._orders.run(job, binding, self._clock.now_ms(), stays, evict)
        if answer is not None:
            await self._hear_answer(job, binding, answer)

    def _residency(self, job: Job, binding: Binding) -> tuple[Stay | None, tuple[str, ...]]:
        """How its model is to be held there, and what leaves for it."""
        view = self.fleet.nodes.get(binding.node or "")
        if view is None:
            return None, ()
        hold = view.holds.get((job.key, binding.epoch))
        stays = self._loader.stay(canonical_model(job.submission.model), view, job.submission.num_ctx)
        return stays, hold.evict if hold else ()

    async def _hear_answer(self, job: Job, binding: Binding, answer: RunAnswer) -> None:
        run = (job.key, binding.epoch)
        assert binding.node is not None
        view = self.fleet.nodes.get(binding.node)
        if view is not None and view.beat.boot == binding.boot:
            if answer.status is RunStatus.RUNNING:
                view.confirm(run, canonical_model(job.submission.model), answer.changes)
            else:
                view.release(run, answer.changes)
        if answer.status is RunStatus.RUNNING or self._bound_as(run, binding.boot) is not job:
            return
        match answer.status:
            case RunStatus.GIVEN_BACK:
                await self._requeue(job, binding.epoch, answer.fault, "given_back")
            case RunStatus.REFUSED:
                log.info("run.refused", job_id=job.key.job, node=binding.node, reason=answer.reason)
                await self._requeue(job, binding.epoch, None, "refused", refused=True)
            case RunStatus.FINISHED:
                newest = await self._journal.newest(job.key)
                if newest is None or newest.final or newest.sequence != job.sequence:
                    self._adopt(job.key, newest)
                else:
                    await self._requeue(job, binding.epoch, None, "finished")

    async def _requeue(self, job: Job, epoch: int, fault: Fault | None, reason: str, *, refused: bool = False) -> None:
        """Take the job from the node that holds it under `epoch`; under another epoch it is none of our business."""
        if (
            self.index.jobs.get(job.key) is not job
            or not job.bound
            or job.binding is None
            or job.binding.epoch != epoch
        ):
            return
        node = job.binding.node
        if node in self.fleet.nodes and counts(fault) and reason == "given_back":
            self.fleet.nodes[node].failed(job.key, time.monotonic())
        binding, sequence = await self._transitions.requeue(job, fault, refused=refused)
        metrics.requeues.labels(reason).inc()
        log.info(
            "job.requeued", job_id=job.key.job, client=job.key.client, node=node, epoch=epoch, reason=reason,
            code=fault.code if fault else None, attempts=len(binding.attempts),
        )  # fmt: skip
        self._fold(job.key, "active", binding, sequence, self._clock.now_ms())
        await self._gather(job)

    async def _gather(self, job: Job) -> None:
        """After the fence: what was shown of the epochs before? Text that was is made durable before anybody waits with it."""
        assert job.binding is not None
        sequence = job.sequence
        carried = await self._transitions.visible_text(job)
        epochs = [past.epoch for past in job.binding.past if past.base is None]
        text = await self._gatherer.gather(job.key, epochs, carried)
        if job.sequence != sequence or self.index.jobs.get(job.key) is not job:
            return
        job.gathered = text
        if text:
            binding, sequence = await self._transitions.keep(job)
            log.info("job.text_kept", job_id=job.key.job, bytes=len(text))
            self._fold(job.key, "active", binding, sequence, self._clock.now_ms())
            job.gathered = text  # the same as in the record; saves reading it
        self._place(job)

    async def _end(self, job: Job, state: Any, fault: Fault) -> None:
        completion, sequence = await self._transitions.end(job, state, fault)
        metrics.ended.labels(str(state)).inc()
        log.info(
            "job.ended", job_id=job.key.job, client=job.key.client, state=state, code=fault.code, epoch=completion.epoch
        )
        self._fold(job.key, "done", completion, sequence, self._clock.now_ms())

    async def _tell_cancel(self, job: Job, binding: Binding) -> None:
        assert binding.node is not None
        assert binding.boot is not None
        await self._orders.cancel(job.key, binding.node, binding.boot, binding.epoch, job.cancel or "cancelled")

    async def _stop_stray(self, node: str, boot: str, run: RunKey) -> None:
        """The rule for stale leaders: only a greater epoch, this one listed as past, a final state, or absence count."""
        key, epoch = run
        newest = await self._journal.newest(key)
        facts = newest.facts if newest else None
        fenced = facts is None or isinstance(facts, Completion)
        if isinstance(facts, Binding):
            fenced = facts.epoch > epoch or any(past.epoch == epoch for past in facts.past)
        if newest is not None:
            self._adopt(key, newest)
        if fenced:
            log.warning("run.stray", job_id=key.job, node=node, epoch=epoch)
            await self._orders.cancel(key, node, boot, epoch, "not bound so", fenced=True)

    # -- support -------------------------------------------------------------------------------------------------------

    def _bound_as(self, run: RunKey, boot: str | None) -> Job | None:
        job = self.index.jobs.get(run[0])
        if job is None or job.binding is None or not job.bound:
            return None
        return job if (job.binding.epoch, job.binding.boot) == (run[1], boot) else None

    def _after_deed(self, key: JobKey, trouble: BusError | None) -> None:
        if isinstance(trouble, Lost):
            self._adopt(key, trouble.newest)
            trouble = None
        if isinstance(trouble, Full):  # that holds for every job
            self._paused_until = time.monotonic() + RETRY_MS / 1000
        if (job := self.index.jobs.get(key)) is not None:
            if trouble is None or job.bound:
                self._place(job)  # a deed that came to nothing left it nowhere
            else:  # not at once again: the two would keep each other busy
                self._wait(key, self._clock.now_ms() + RETRY_MS)
        self._wake.set()

    def _measure(self, now: float) -> None:
        metrics.active.set(1 if self._is_active() else 0)
        metrics.jobs.labels("queued").set(len(self.index.jobs) - len(self._bound))
        metrics.jobs.labels("bound").set(len(self._bound))
        alive = [view.liveness(now, self._hearing_since) for view in self.fleet.nodes.values()]
        for liveness in Liveness:
            metrics.nodes.labels(str(liveness)).set(alive.count(liveness))
