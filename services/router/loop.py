"""The router's shell: folds what comes in, asks the pure parts what to do, and does it.

One owner of index, queue and fleet; everything runs on one event loop, so nothing is locked. What needs a round trip runs
as a task of its own, one at a time per job (`_busy`). Whatever was missed is found again by `_tick`: it looks at the whole,
like a controller, and hints only make it quicker.
"""

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from libs.common.bus.connection import Bus, Message, Stored
from libs.common.bus.failures import Away, BusError, NoResponders
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.control import (
    CancelRun,
    EraseAnswer,
    FreezePrefix,
    PlaceAnswer,
    Run,
    RunAnswer,
    RunStatus,
    decode_erase,
    decode_free,
    decode_place_query,
    decode_run_answer,
)
from libs.common.contracts.events import parse_frame
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.headers import FACTS
from libs.common.contracts.jobs import MAX_RUN_S, Binding, Completion, decode_cancel_mark
from libs.common.contracts.nodes import canonical_model, decode_heartbeat
from libs.common.contracts.streams import OUT
from libs.common.contracts.subjects import JobKey
from libs.common.journal import Entry, Journal, Lost, facts_of
from services.router import metrics
from services.router.decide import Bind, Hold, decide
from services.router.fleet import Fleet, Liveness, NodeView, RunKey
from services.router.fleet import Hold as SlotHold
from services.router.gathering import assemble
from services.router.index import Index, Job
from services.router.queue import PendingQueue
from services.router.settle import End, Enqueue, Gather, Wait, settle
from services.router.transitions import Transitions

log = structlog.get_logger()

TICK_S = 0.25
ASK_S = 1.0  # between two questions about the same run
RUN_TIMEOUT_S = 1.0
PING_S = 1.0
GATHER_S = 0.2  # how long gateways have to say what they have shown
OVERDUE_S = 20.0  # after its deadline a run that its worker did not end is taken away
STRAY_S = 3.0  # a run in a heartbeat that the index does not know: normal for a moment
UNWATCHED_S = 30.0  # two looks so far apart, and nobody reads: the job is cancelled
TIDY_AT_ONCE = 64
TIDY_RETRY_S = 5.0


class Router:
    def __init__(self, bus: Bus, is_active: Callable[[], bool]) -> None:
        self.index = Index()
        self.queue = PendingQueue()
        self.fleet = Fleet()
        self._bus = bus
        self._is_active = is_active
        self._journal = Journal(bus)
        self._transitions = Transitions(bus)
        self._wake = asyncio.Event()
        self._busy: set[JobKey] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._delayed: list[tuple[int, JobKey]] = []
        self._asked_at: dict[RunKey, float] = {}
        self._told_at: dict[RunKey, float] = {}
        self._stray_since: dict[RunKey, float] = {}
        self._unwatched_since: dict[JobKey, float] = {}
        self._looked_for_readers_at: dict[JobKey, float] = {}
        self._tidied_at: dict[JobKey, float] = {}
        self._held: dict[str, str] = {}

    # -- what comes in -------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        self.index.clear()
        self.queue.clear()
        self._delayed.clear()

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

    def on_node_record(self, stored: Stored) -> None:
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
            self._do(job.key, self._requeue(job, free.fault, "given_back"))
        self._wake.set()

    async def place(self, message: Message) -> bytes:
        query = decode_place_query(message.data)
        key = JobKey(query.client, query.job)
        job = self.index.jobs.get(key)
        reason = self._held.get(canonical_model(job.submission.model), "") if job and not job.bound else ""
        return encode(PlaceAnswer(position=self.queue.position(key), reason=reason))

    async def erase(self, message: Message) -> bytes:
        wish = decode_erase(message.data)
        reason = await self._transitions.erase(wish)
        return encode(EraseAnswer(erased=reason is None, reason=reason or ""))

    def _on_heartbeat(self, data: bytes, *, live: bool) -> None:
        try:
            beat = decode_heartbeat(data)
        except Malformed as error:
            if data:
                log.warning("heartbeat.malformed", error=str(error))
            return
        if self.fleet.hear(beat, time.monotonic(), live=live):
            self._wake.set()

    def _fold(self, key: JobKey, record: str, facts: Any, sequence: int, at_ms: int) -> None:
        job = self.index.fold(key, record, facts, sequence, at_ms)
        if job is not None:
            self._place(job)
        elif key not in self.index.jobs:
            self.queue.discard(key)
        self._wake.set()

    def _adopt(self, key: JobKey, newest: Entry | None) -> None:
        """Somebody else's record stands in the folder: it is the truth."""
        match newest.facts if newest else None:
            case Completion() as completion:
                assert newest
                self._fold(key, "done", completion, newest.sequence, newest.at_ms)
            case Binding() as binding:
                assert newest
                self._fold(key, "active", binding, newest.sequence, newest.at_ms)
            case None:
                self.index.forget(key)
                self.queue.discard(key)

    def _place(self, job: Job) -> None:
        """Where an unfinished job belongs now: a node's, the queue's, or later's."""
        if job.bound:
            self.queue.discard(job.key)
            return
        match settle(job, _now_ms()):
            case Enqueue():
                self.queue.add(job.key, canonical_model(job.submission.model), job.submission.priority, job.submitted)
            case Wait(until_ms):
                self.queue.discard(job.key)
                heapq.heappush(self._delayed, (until_ms, job.key))
            case Gather() | End():
                self.queue.discard(job.key)  # `_tick` does it

    # -- what goes out -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Endless: look at everything a few times a second, and at once when something came in."""
        looked_at = 0.0
        while True:
            # Not self._wake.wait() under a timeout: that costs two tasks a turn.
            self._wake.clear()
            if self._is_active():
                now = time.monotonic()
                if now - looked_at >= TICK_S:
                    looked_at = now
                    self._tick(now)
                self._schedule(now)
            self._measure()
            try:
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def ping_nodes(self) -> None:
        """Endless: a process that was killed is noticed by its silence within three pings."""
        while True:
            await asyncio.sleep(PING_S)
            if self._bus.connected:
                await asyncio.gather(*(self._ping(view) for view in list(self.fleet.nodes.values()) if not view.gone))

    async def _ping(self, view: NodeView) -> None:
        answered = nobody = False
        try:
            await self._bus.request(subjects.worker(view.name, view.beat.boot, "ping"), timeout=PING_S * 0.9)
            answered = True
        except NoResponders:
            nobody = True
        except BusError:
            pass
        if self.fleet.ping_result(view.name, view.beat.boot, answered=answered, nobody=nobody):
            log.warning("node.gone", node=view.name, boot=view.beat.boot)
            self._wake.set()

    def _schedule(self, now: float) -> None:
        held: dict[str, str] = {}
        progress = True
        while progress:
            progress = False
            for key, model in self.queue.heads():
                if model in held:
                    continue
                job = self.index.jobs.get(key)
                if job is None or job.bound or key in self._busy or not isinstance(settle(job, _now_ms()), Enqueue):
                    self.queue.discard(key)
                    progress = True
                    break
                with metrics.decide_seconds.time():
                    verdict = decide(
                        model,
                        self.fleet.nodes.values(),
                        now=now,
                        connected_at=self._bus.connected_at,
                        waited_ms=max(0, _now_ms() - job.created_ms),
                    )
                if isinstance(verdict, Hold):
                    held[model] = verdict.reason
                    continue
                self.queue.discard(key)
                self._reserve(job, verdict, model, now)
                self._do(key, self._bind(job, verdict))
                progress = True
                break
        self._held = held

    def _reserve(self, job: Job, verdict: Bind, model: str, now: float) -> None:
        view = self.fleet.nodes[verdict.node]
        view.holds[job.key, job.sequence] = SlotHold(model)
        view.last_bound_at = now

    def _tick(self, now: float) -> None:
        while self._delayed and self._delayed[0][0] <= _now_ms():
            _, key = heapq.heappop(self._delayed)
            if (delayed := self.index.jobs.get(key)) is not None:
                self._place(delayed)
        for job in list(self.index.jobs.values()):
            if job.key in self._busy:
                continue
            if job.bound:
                self._look_at_bound(job, now)
            elif job.cancel is not None or job.binding is not None or _now_ms() >= job.deadline_ms:
                self._look_at_unbound(job)
            if not job.submission.detached:
                self._look_for_readers(job, now)
        self._look_for_strays(now)
        self._tidy(now)

    def _look_at_unbound(self, job: Job) -> None:
        match settle(job, _now_ms()):
            case Gather():
                self._do(job.key, self._gather(job))
            case End(state, fault):
                self._do(job.key, self._end(job, state, fault))
            case Enqueue():
                if job.key not in self.queue:
                    self._place(job)

    def _look_at_bound(self, job: Job, now: float) -> None:
        binding = job.binding
        assert binding is not None
        assert binding.node is not None
        assert binding.boot is not None
        run = (job.key, binding.epoch)
        if not self.fleet.alive_boot(binding.node, binding.boot, now, self._bus.connected_at):
            fault = Fault(code=Code.NODE_FAILED, message=f"node {binding.node} went away")
            self._do(job.key, self._requeue(job, fault, "node_gone"))
            return
        if _now_ms() > job.deadline_ms + OVERDUE_S * 1000:
            self._do(job.key, self._requeue(job, None, "overdue"))
            return
        if job.cancel is not None and now - self._told_at.get(run, 0.0) >= ASK_S:
            self._told_at[run] = now
            self._spawn(self._tell_cancel(job, binding))
        view = self.fleet.nodes.get(binding.node)
        if view is None:
            return
        if view.lists(run):
            view.holds.setdefault(run, SlotHold(canonical_model(job.submission.model))).confirmed = view.beat.changes
            return
        hold = view.holds.get(run)
        if (hold is None or hold.confirmed is None) and now - self._asked_at.get(run, 0.0) >= ASK_S:
            self._do(job.key, self._order(job, binding))

    def _look_for_readers(self, job: Job, now: float) -> None:
        """A chat job that nobody reads and nobody wants kept is cancelled: its client and its gateway are both gone."""
        if job.cancel is None and now - self._looked_for_readers_at.setdefault(job.key, now) >= UNWATCHED_S:
            self._looked_for_readers_at[job.key] = now
            self._spawn(self._ask_for_readers(job, now))

    async def _ask_for_readers(self, job: Job, now: float) -> None:
        try:
            await self._bus.request(subjects.prefix(job.key), encode(FreezePrefix(epoch=0)), timeout=2)
        except NoResponders:
            first = self._unwatched_since.setdefault(job.key, now)
            if now - first >= UNWATCHED_S - 1:
                job.cancel = "nobody reads the answer any more"
                self._wake.set()
            return
        except BusError:
            pass
        self._unwatched_since.pop(job.key, None)

    def _look_for_strays(self, now: float) -> None:
        """What runs but is not bound so is stopped, after a look at the leader: this router's view may be old."""
        seen: set[RunKey] = set()
        for view in self.fleet.nodes.values():
            for running in view.beat.running:
                run = (JobKey(running.client, running.job), running.epoch)
                if run in view.freed or self._bound_as(run, view.beat.boot) is not None:
                    continue
                seen.add(run)
                if now - self._stray_since.setdefault(run, now) >= STRAY_S and run[0] not in self._busy:
                    self._stray_since[run] = now
                    self._do(run[0], self._stop_stray(view.name, view.beat.boot, run))
        for run in [run for run in self._stray_since if run not in seen]:
            del self._stray_since[run]

    def _tidy(self, now: float) -> None:
        due = [key for key in self.index.leftovers if now - self._tidied_at.get(key, 0.0) >= TIDY_RETRY_S]
        for key in due[:TIDY_AT_ONCE]:
            self._tidied_at[key] = now
            self._spawn(self._transitions.tidy(key, self.index.leftovers[key]))
        if len(self._tidied_at) > 4 * (len(self.index.leftovers) + TIDY_AT_ONCE):
            self._tidied_at = {key: at for key, at in self._tidied_at.items() if key in self.index.leftovers}
            jobs = self.index.jobs
            for table in (self._asked_at, self._told_at):
                for run in [run for run in table if run[0] not in jobs]:
                    del table[run]
            for by_job in (self._unwatched_since, self._looked_for_readers_at):
                for key in [key for key in by_job if key not in jobs]:
                    del by_job[key]

    # -- deeds, each a task --------------------------------------------------------------------------------------------

    async def _bind(self, job: Job, verdict: Bind) -> None:
        run = (job.key, job.sequence)
        view = self.fleet.nodes[verdict.node]
        try:
            binding, sequence = await self._transitions.bind(job, verdict)
        except BusError:
            view.holds.pop(run, None)
            raise
        metrics.binds.labels("yes" if verdict.decision.cold else "no").inc()
        self._fold(job.key, "active", binding, sequence, _now_ms())
        await self._order(job, binding)

    async def _order(self, job: Job, binding: Binding) -> None:
        """Ask the worker to run it; saying it again is always safe."""
        assert binding.node is not None
        assert binding.boot is not None
        run = (job.key, binding.epoch)
        self._asked_at[run] = time.monotonic()
        order = Run(
            client=job.key.client,
            job=job.key.job,
            epoch=binding.epoch,
            revision=job.sequence,
            submitted=job.submitted,
            seconds_left=min(MAX_RUN_S, max(0.0, (job.deadline_ms - _now_ms()) / 1000)),
        )
        try:
            reply = await self._bus.request(
                subjects.worker(binding.node, binding.boot, "run"), encode(order), timeout=RUN_TIMEOUT_S
            )
            answer = decode_run_answer(reply)
        except (NoResponders, Away, Malformed) as error:
            log.info("run.unanswered", job_id=job.key.job, node=binding.node, error=str(error))
            return  # a time-out means: ask again, until an answer or a heartbeat decides
        await self._hear_answer(job, binding, answer)

    async def _hear_answer(self, job: Job, binding: Binding, answer: RunAnswer) -> None:
        run = (job.key, binding.epoch)
        assert binding.node is not None
        view = self.fleet.nodes.get(binding.node)
        if view is not None and view.beat.boot == binding.boot:
            if answer.status is RunStatus.RUNNING:
                view.holds.setdefault(run, SlotHold(canonical_model(job.submission.model))).confirmed = answer.changes
            else:
                view.release(run, answer.changes)
        if answer.status is RunStatus.RUNNING or self._bound_as(run, binding.boot) is not job:
            return
        match answer.status:
            case RunStatus.GIVEN_BACK:
                await self._requeue(job, answer.fault, "given_back")
            case RunStatus.REFUSED:
                log.info("run.refused", job_id=job.key.job, node=binding.node, reason=answer.reason)
                await self._requeue(job, None, "refused", refused=True)
            case RunStatus.FINISHED:
                newest = await self._journal.newest(job.key)
                if newest is None or newest.final or newest.sequence != job.sequence:
                    self._adopt(job.key, newest)
                else:
                    await self._requeue(job, None, "finished")

    async def _requeue(self, job: Job, fault: Fault | None, reason: str, *, refused: bool = False) -> None:
        if not job.bound:
            return
        binding, sequence = await self._transitions.requeue(job, fault, refused=refused)
        metrics.requeues.labels(reason).inc()
        log.info(
            "job.requeued", job_id=job.key.job, client=job.key.client, node=job.binding.node if job.binding else None,
            reason=reason, code=fault.code if fault else None, attempts=len(binding.attempts),
        )  # fmt: skip
        self._fold(job.key, "active", binding, sequence, _now_ms())
        await self._gather(job)

    async def _gather(self, job: Job) -> None:
        """After the fence: what was shown of the epochs before? Gateways freeze them as they answer."""
        assert job.binding is not None
        epochs = [past.epoch for past in job.binding.past if past.base is None]
        sequence = job.sequence
        pieces = []
        for epoch in epochs:
            pieces += await self._segments(job.key, epoch)
            pieces += await self._shown(job.key, epoch)
        if job.sequence == sequence:
            job.gathered = assemble(pieces)
            self._place(job)

    async def _segments(self, key: JobKey, epoch: int) -> list[tuple[int, bytes]]:
        found = await self._bus.from_sequence(OUT, subjects.segments_of_epoch(key, epoch), batch=5000, timeout=5)
        return [parse_frame(stored.data) for stored in found]

    async def _shown(self, key: JobKey, epoch: int) -> list[tuple[int, bytes]]:
        answers = await self._bus.ask_all(subjects.prefix(key), encode(FreezePrefix(epoch=epoch)), within=GATHER_S)
        pieces = []
        for answer in answers:
            try:
                pieces.append(parse_frame(answer))
            except Malformed as error:
                log.warning("prefix.malformed", error=str(error))
        return pieces

    async def _end(self, job: Job, state: Any, fault: Fault) -> None:
        completion, sequence = await self._transitions.end(job, state, fault)
        metrics.ended.labels(str(state)).inc()
        log.info(
            "job.ended", job_id=job.key.job, client=job.key.client, state=state, code=fault.code, epoch=completion.epoch
        )
        self._fold(job.key, "done", completion, sequence, _now_ms())

    async def _tell_cancel(self, job: Job, binding: Binding) -> None:
        assert binding.node is not None
        assert binding.boot is not None
        wish = CancelRun(client=job.key.client, job=job.key.job, epoch=binding.epoch, reason=job.cancel or "cancelled")
        await self._bus.request(
            subjects.worker(binding.node, binding.boot, "cancel"), encode(wish), timeout=RUN_TIMEOUT_S
        )

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
            wish = CancelRun(client=key.client, job=key.job, epoch=epoch, reason="not bound so", fenced=True)
            await self._bus.request(subjects.worker(node, boot, "cancel"), encode(wish), timeout=RUN_TIMEOUT_S)

    # -- support -------------------------------------------------------------------------------------------------------

    def _bound_as(self, run: RunKey, boot: str | None) -> Job | None:
        job = self.index.jobs.get(run[0])
        if job is None or job.binding is None or not job.bound:
            return None
        return job if (job.binding.epoch, job.binding.boot) == (run[1], boot) else None

    def _do(self, key: JobKey, deed: Coroutine[Any, Any, None]) -> None:
        """One deed at a time per job; a second one is dropped, `_tick` will see what is left to do."""
        if key in self._busy:
            deed.close()
            return
        self._busy.add(key)

        async def guarded() -> None:
            try:
                await deed
            except Lost as lost:
                self._adopt(key, lost.newest)
            finally:
                self._busy.discard(key)
                if (job := self.index.jobs.get(key)) is not None:
                    self._place(job)  # a deed that failed left it nowhere
                self._wake.set()

        self._spawn(guarded())

    def _spawn(self, coroutine: Awaitable[None]) -> None:
        async def logged() -> None:
            try:
                await coroutine
            except BusError as error:
                log.info("deed.delayed", error=str(error))
            except Exception:
                log.exception("deed.failed")

        task = asyncio.create_task(logged())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _measure(self) -> None:
        jobs = self.index.jobs
        bound = len(jobs) - len(self.queue)
        metrics.active.set(1 if self._is_active() else 0)
        metrics.jobs.labels("queued").set(len(self.queue))
        metrics.jobs.labels("bound").set(max(0, bound))
        now = time.monotonic()
        for liveness in Liveness:
            count = sum(v.liveness(now, self._bus.connected_at) is liveness for v in self.fleet.nodes.values())
            metrics.nodes.labels(str(liveness)).set(count)


def _now_ms() -> int:
    return int(time.time() * 1000)
