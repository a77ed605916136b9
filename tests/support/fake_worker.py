"""A worker as the router sees it: heartbeats, answers to `run`, `cancel` and `ping`, `done` by compare-and-set, `free`.

It has no Ollama: the test says when a run ends and how. It keeps the real one's promises (DESIGN §3): a boot executes a
(job, epoch) at most once, answers the same for ever after, and refuses a binding that does not stand in the log.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.link import Message, Subscription
from libs.common.contracts import subjects
from libs.common.contracts.codec import encode
from libs.common.contracts.control import (
    CancelAnswer,
    CancelRun,
    Free,
    Pong,
    Run,
    RunAnswer,
    RunStatus,
    decode_cancel_run,
    decode_run,
)
from libs.common.contracts.events import End, Event, frame, line
from libs.common.contracts.faults import Fault
from libs.common.contracts.jobs import Binding, Completion, Hint
from libs.common.contracts.nodes import DiskModel, Heartbeat, LoadedModel, Phase, Running
from libs.common.contracts.streams import NODES
from libs.common.contracts.subjects import JobKey, OutKey
from libs.common.folder import digest, ttl_s
from libs.common.ids import new_op_id
from libs.common.journal import Journal, Lost
from libs.common.states import JobState

RunKey = tuple[JobKey, int]
VERBS: tuple[subjects.WorkerVerb, ...] = ("run", "cancel", "ping")


class FakeWorker:
    def __init__(
        self,
        bus: Bus,
        node: str = "n1",
        boot: str = "boot-1",
        *,
        models: tuple[str, ...] = ("m:1",),
        loaded: tuple[str, ...] = ("m:1",),
        slots: int = 1,
        beat_s: float = 0.2,
    ) -> None:
        self.node, self.boot = node, boot
        self.models, self.loaded, self.slots = models, loaded, slots
        self.executed: Counter[RunKey] = Counter()
        self.asked: list[Run] = []
        self.cancelled: list[CancelRun] = []
        self.running: dict[RunKey, tuple[Run, Binding]] = {}
        self.most = 0  # runs at once
        self.changes = 0
        # What a test may switch:
        self.deaf = 0  # so many orders are not answered, though carried out
        self.absent = 0  # so many orders never arrive
        self.refuses = ""  # the reason
        self.gives_back: Fault | None = None  # every run at once, with this fault
        self.loses_free = False
        self.beating = True
        self.draining = False
        self.suspect_models: tuple[str, ...] = ()
        self.finish_after: float | None = None  # every run ends well by itself
        self.text = "hello"
        self._ended: dict[RunKey, RunAnswer] = {}
        self._bus, self._journal, self._bucket = bus, Journal(bus), Bucket(bus, NODES)
        self._beat_s, self._beat = beat_s, 0
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        answers = {"run": self._on_run, "cancel": self._on_cancel, "ping": self._on_ping}
        for verb in VERBS:
            subject = subjects.worker(self.node, self.boot, verb)
            self._subscriptions.append(await self._bus.serve(subject, answers[verb]))
        await self.beat()
        self._spawn(self._keep_beating())

    async def vanish(self) -> None:
        """As after kill -9: no answer, no heartbeat, no `done`."""
        for subscription in self._subscriptions:
            await subscription.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def beat(self, *, changes: int | None = None, running: tuple[Running, ...] | None = None) -> None:
        self._beat += 1
        listed = tuple(
            Running(client=key.client, job=key.job, epoch=epoch, phase=Phase.DECODING, model=binding.job.model)
            for (key, epoch), (_, binding) in self.running.items()
        )
        heartbeat = Heartbeat(
            node=self.node, boot=self.boot, beat=self._beat, slots=self.slots, draining=self.draining,
            changes=self.changes if changes is None else changes, running=listed if running is None else running,
            models=tuple(DiskModel(name=name) for name in self.models),
            loaded=tuple(LoadedModel(name=name) for name in self.loaded),
            suspect_models=self.suspect_models,
        )  # fmt: skip
        await self._bucket.put(self.node, encode(heartbeat), ttl_s=600)

    # -- what a test makes it do -----------------------------------------------------------------------------------------

    def run_of(self, key: JobKey) -> RunKey | None:
        return next((run for run in self.running if run[0] == key), None)

    async def finish(self, run: RunKey, state: JobState = JobState.SUCCEEDED, fault: Fault | None = None) -> bool:
        """`done`, then `free`; False if this worker was fenced."""
        order, binding = self.running[run]
        whole = line(Event(text=self.text)) + line(Event(end=End(state=state, fault=fault)))
        completion = Completion(
            op_id=new_op_id(), job=binding.job, submitted=binding.submitted, created_ms=binding.created_ms, state=state,
            epoch=run[1], past=binding.past, attempts=binding.attempts, node=self.node, boot=self.boot,
            finished_ms=int(time.time() * 1000), decision=binding.decision, fault=fault, log_size=len(whole),
            log_digest=digest(whole),
        )  # fmt: skip
        ttl = ttl_s(binding.job, created_ms=binding.created_ms, now_ms=int(time.time() * 1000), done=True)
        won = True
        try:
            sequence = await self._journal.write(run[0], "done", completion, whole, expected=order.revision, ttl=ttl)
            await self._bus.publish(subjects.hint(run[0]), encode(Hint(state=state, epoch=run[1], sequence=sequence)))
        except Lost:
            won = False
        await self.let_go(run, RunAnswer(status=RunStatus.FINISHED, changes=0))
        return won

    async def give_back(self, run: RunKey, fault: Fault | None) -> None:
        await self.let_go(run, RunAnswer(status=RunStatus.GIVEN_BACK, changes=0, fault=fault))

    async def let_go(self, run: RunKey, answer: RunAnswer) -> None:
        """The run leaves the table; everybody is told, unless this worker loses its word."""
        if run not in self.running:
            return
        del self.running[run]
        self.changes += 1
        if answer.status is not RunStatus.REFUSED:
            self._ended[run] = answer
        if not self.loses_free:
            key, epoch = run
            free = Free(
                node=self.node, boot=self.boot, client=key.client, job=key.job, epoch=epoch, changes=self.changes,
                given_back=answer.status is RunStatus.GIVEN_BACK, fault=answer.fault,
            )  # fmt: skip
            await self._bus.publish(subjects.router("free"), encode(free))

    async def keep_segment(self, run: RunKey, offset: int, log: bytes) -> None:
        key, epoch = run
        await self._bus.append(subjects.segment(OutKey(self.node, *key, epoch)), frame(offset, log))

    # -- answers ---------------------------------------------------------------------------------------------------------

    async def _on_run(self, message: Message) -> bytes | None:
        order = decode_run(message.data)
        self.asked.append(order)
        if self.absent:
            self.absent -= 1
            return None
        answer = await self._accept(order)
        if self.deaf:
            self.deaf -= 1
            return None
        return encode(answer)

    async def _accept(self, order: Run) -> RunAnswer:
        run = (JobKey(order.client, order.job), order.epoch)
        if run in self.running:
            return self._answer(RunStatus.RUNNING)
        if (known := self._ended.get(run)) is not None:
            return self._answer(known.status, fault=known.fault)
        if self.refuses:
            return self._answer(RunStatus.REFUSED, reason=self.refuses)
        standing = await self._journal.record_at(order.revision)
        binding = standing[1].facts if standing else None
        if not isinstance(binding, Binding) or (binding.node, binding.boot, binding.epoch) != (
            self.node, self.boot, order.epoch,
        ):  # fmt: skip
            return self._answer(RunStatus.REFUSED, reason="no such binding")
        if run in self.running or run in self._ended:  # asked twice while reading
            return await self._accept(order)
        self.running[run] = (order, binding)
        self.executed[run] += 1
        self.most = max(self.most, len(self.running))
        self.changes += 1
        answer = self._answer(RunStatus.RUNNING)
        if self.gives_back is not None:
            self._spawn(self.give_back(run, self.gives_back))
        elif self.finish_after is not None:
            self._spawn(self._finish_later(run, self.finish_after))
        return answer

    async def _on_cancel(self, message: Message) -> bytes | None:
        wish = decode_cancel_run(message.data)
        self.cancelled.append(wish)
        run = (JobKey(wish.client, wish.job), wish.epoch)
        known = run in self.running
        if known and wish.fenced:
            self._spawn(self.let_go(run, RunAnswer(status=RunStatus.FINISHED, changes=0)))
        elif known:
            self._spawn(self._cancelled(run))
        else:
            self._ended.setdefault(run, RunAnswer(status=RunStatus.FINISHED, changes=0))
        return encode(CancelAnswer(known=known, changes=self.changes))

    async def _on_ping(self, message: Message) -> bytes | None:
        return encode(Pong(node=self.node, boot=self.boot))

    def _answer(self, status: RunStatus, *, reason: str = "", fault: Fault | None = None) -> RunAnswer:
        return RunAnswer(status=status, changes=self.changes, reason=reason, fault=fault)

    # -- background ------------------------------------------------------------------------------------------------------

    async def _cancelled(self, run: RunKey) -> None:
        await self.finish(run, JobState.CANCELLED)

    async def _finish_later(self, run: RunKey, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if run in self.running:
            await self.finish(run)

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(self._beat_s)
            if self.beating:
                with contextlib.suppress(BusError):
                    await self.beat()

    def _spawn(self, coroutine) -> None:  # type: ignore[no-untyped-def]
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextlib.asynccontextmanager
async def fake_worker(bus: Bus, node: str = "n1", boot: str = "boot-1", **switches) -> AsyncIterator[FakeWorker]:  # type: ignore[no-untyped-def]
    """`switches` are the constructor's, or attributes to be set before it starts."""
    own = ("models", "loaded", "slots", "beat_s")
    worker = FakeWorker(bus, node, boot, **{name: switches.pop(name) for name in own if name in switches})
    for name, value in switches.items():
        assert hasattr(worker, name), name
        setattr(worker, name, value)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.vanish()
