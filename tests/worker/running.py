"""A worker over a real nats-server, and a router and a gateway in the hands of the test."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from libs.common import runtime
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.link import Message
from libs.common.bus.stored import Ack, Stored
from libs.common.contracts import subjects
from libs.common.contracts.codec import encode
from libs.common.contracts.control import (
    CancelAnswer,
    CancelRun,
    Free,
    Read,
    Run,
    RunAnswer,
    decode_cancel_answer,
    decode_free,
    decode_run_answer,
)
from libs.common.contracts.events import Event, decode_event, parse_frame
from libs.common.contracts.jobs import Attempt, Binding, Completion, Hint, PastEpoch, Submission, decode_hint
from libs.common.contracts.nodes import Heartbeat, decode_heartbeat
from libs.common.contracts.requests import Kind
from libs.common.contracts.streams import OUT
from libs.common.contracts.subjects import JobKey
from libs.common.folder import ttl_s
from libs.common.ids import new_job_id, new_op_id
from libs.common.journal import Journal
from services.worker.main import start
from services.worker.settings import WorkerSettings
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

NODE = "n1"
CLIENT = "acme"

Hook = Callable[[str], Awaitable[None]]


class HookedBus(Bus):
    """The worker's bus, with the test's hand on its writes and reads."""

    def __init__(self) -> None:
        super().__init__("")
        self.before_append: Hook | None = None
        self.before_read: Callable[[int], Awaitable[None]] | None = None
        self.said: list[tuple[str, str]] = []  # what happened, in order: ("acked" or "published", subject)

    async def append(self, subject: str, *args: Any, **more: Any) -> Ack:
        if self.before_append:
            await self.before_append(subject)
        ack = await super().append(subject, *args, **more)
        self.said.append(("acked", subject))
        return ack

    async def publish(self, subject: str, *args: Any, **more: Any) -> None:
        self.said.append(("published", subject))
        await super().publish(subject, *args, **more)

    async def at(self, stream: str, sequence: int) -> Stored | None:
        if self.before_read:
            await self.before_read(sequence)
        return await super().at(stream, sequence)


class Gate:
    """A place where somebody is held until the test opens it."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def wait(self) -> None:
        self.reached.set()
        await self.opened.wait()


def at_done(act: Callable[[], Awaitable[None]]) -> Hook:
    """Acts before each try to write a `done`."""

    async def hook(subject: str) -> None:
        if subject.endswith(".done"):
            await act()

    return hook


@dataclass
class Worker:
    bus: HookedBus
    running: runtime.Running
    boot: str = ""
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def drain(self) -> None:
        assert self.running.drain
        await self.running.drain()

    def hurry(self) -> None:
        assert self.running.hurry
        self.running.hurry()


@dataclass
class Job:
    key: JobKey
    submission: Submission
    submitted: int
    created_ms: int
    binding: Binding | None = None
    order: Run | None = None


@dataclass
class Chunk:
    at: float
    offset: int
    data: bytes


class World:
    """Everything a test says to a worker and hears of it, over a connection of its own."""

    def __init__(self, nats: NatsServer, bus: Bus) -> None:
        self.nats = nats
        self.bus = bus
        self.journal = Journal(bus)
        self.beats: list[tuple[float, Heartbeat]] = []
        self.frees: list[tuple[float, Free]] = []
        self.chunks: dict[tuple[str, int], list[Chunk]] = {}
        self.hints: list[Hint] = []

    async def listen(self) -> None:
        def beat(message: Message) -> None:
            self.beats.append((time.monotonic(), decode_heartbeat(message.data)))

        def free(message: Message) -> None:
            self.frees.append((time.monotonic(), decode_free(message.data)))

        def chunk(message: Message) -> None:
            key = subjects.parse_out(message.subject)
            assert key.node == NODE
            chunk = Chunk(time.monotonic(), *parse_frame(message.data))
            self.chunks.setdefault((key.job, key.epoch), []).append(chunk)

        await self.bus.subscribe("$KV.nodes.*", beat)
        await self.bus.subscribe(subjects.router("free"), free)
        await self.bus.subscribe("out.*.*.*.*.c", chunk)
        await self.bus.subscribe("evt.>", lambda message: self.hints.append(decode_hint(message.data)))

    @contextlib.asynccontextmanager
    async def worker(
        self, url: str, *, slots: int = 1, drain_grace: float = 30.0, patience: float = 1.0
    ) -> AsyncIterator[Worker]:
        """As the runtime runs it, without its ports and signals."""
        settings = WorkerSettings(
            node=NODE, node_url=url, slots=slots, drain_grace=drain_grace, patience=patience, nats_url=self.nats.url
        )
        bus = HookedBus()
        await bus.open([self.nats.url])
        heard = len(self.beats)
        try:
            async with start(settings, bus) as running:
                worker = Worker(bus, running)
                worker.tasks = {name: asyncio.create_task(task) for name, task in running.tasks.items()}
                try:
                    await eventually(lambda: len(self.beats) > heard)
                    worker.boot = self.beats[-1][1].boot
                    yield worker
                finally:
                    for task in worker.tasks.values():
                        task.cancel()
                    await asyncio.gather(*worker.tasks.values(), return_exceptions=True)
        finally:
            await bus.close()

    # -- as a gateway ------------------------------------------------------------------------------------------------------

    async def submit(
        self,
        kind: Kind = Kind.CHAT,
        *,
        model: str = "chat",
        deadline_s: float = 60,
        estimated_tokens: int = 0,
        **fields: Any,
    ) -> Job:
        body = json.dumps({"model": model, **fields}).encode()
        submission = Submission(
            op_id=new_op_id(), kind=kind, model=model, route="/jobs", deadline_s=deadline_s, result_ttl_s=60,
            size=len(body), digest="d", prompt_tokens=estimated_tokens,
        )  # fmt: skip
        key = JobKey(CLIENT, new_job_id())
        sequence = await self.journal.write(key, "new", submission, body, expected=0, ttl=120)
        found = await self.journal.record_at(sequence)
        assert found
        return Job(key, submission, sequence, found[1].at_ms)

    async def read(self, worker: Worker, job: Job, offset: int = 0) -> bytes:
        """The answer to a catch-up, still in its frame."""
        assert job.order
        wish = Read(client=job.key.client, job=job.key.job, epoch=job.order.epoch, offset=offset)
        return await self.bus.request(subjects.worker(NODE, worker.boot, "read"), encode(wish))

    def shown(self, job: Job) -> bytes:
        """The live chunks put together: in order and without a gap, or this fails."""
        log = b""
        for chunk in self.chunks_of(job):
            assert chunk.offset == len(log)
            log += chunk.data
        return log

    def chunks_of(self, job: Job) -> list[Chunk]:
        assert job.order
        return self.chunks.get((job.key.job, job.order.epoch), [])

    # -- as a router -------------------------------------------------------------------------------------------------------

    async def bind(
        self,
        worker: Worker,
        job: Job,
        *,
        node: str = NODE,
        boot: str | None = None,
        past: tuple[PastEpoch, ...] = (),
        attempts: tuple[Attempt, ...] = (),
        seconds_left: float = 60.0,
        carried: bytes = b"",
        **order: Any,
    ) -> Run:
        newest = await self.journal.newest(job.key)
        assert newest
        job.binding = Binding(
            op_id=new_op_id(), job=job.submission, submitted=job.submitted, created_ms=job.created_ms,
            epoch=newest.sequence, node=node, boot=boot or worker.boot, past=past, attempts=attempts,
            base=len(carried),
        )  # fmt: skip
        ttl = ttl_s(job.submission, created_ms=job.created_ms, now_ms=job.created_ms)
        revision = await self.journal.write(job.key, "active", job.binding, carried, expected=newest.sequence, ttl=ttl)
        job.order = Run(
            client=job.key.client, job=job.key.job, epoch=job.binding.epoch, revision=revision, submitted=job.submitted,
            seconds_left=seconds_left, **order,
        )  # fmt: skip
        return job.order

    async def requeue(self, job: Job) -> None:
        """The fence: the job is nobody's."""
        newest = await self.journal.newest(job.key)
        assert newest
        assert job.binding
        back = Binding(
            op_id=new_op_id(), job=job.submission, submitted=job.submitted, created_ms=job.created_ms,
            epoch=newest.sequence, past=(PastEpoch(epoch=job.binding.epoch),),
        )  # fmt: skip
        await self.journal.write(job.key, "active", back, b"", expected=newest.sequence, ttl=120)

    async def ask(self, worker: Worker, order: Run) -> RunAnswer:
        return decode_run_answer(await self.bus.request(subjects.worker(NODE, worker.boot, "run"), encode(order)))

    async def run(self, worker: Worker, text: str = "Hi", *, bind: dict[str, Any] | None = None, **fields: Any) -> Job:
        """A chat, submitted, bound and ordered."""
        job = await self.submit(messages=[{"role": "user", "content": text}], **fields)
        await self.ask(worker, await self.bind(worker, job, **(bind or {})))
        return job

    async def cancel(self, worker: Worker, order: Run, *, fenced: bool = False) -> CancelAnswer:
        wish = CancelRun(client=order.client, job=order.job, epoch=order.epoch, reason="the client left", fenced=fenced)
        return decode_cancel_answer(await self.bus.request(subjects.worker(NODE, worker.boot, "cancel"), encode(wish)))

    # -- what came of it ---------------------------------------------------------------------------------------------------

    async def done(self, job: Job, *, within: float = 5.0) -> tuple[Completion, bytes]:
        async def finished() -> Any:
            with contextlib.suppress(BusError):
                entry = await self.journal.newest(job.key)
                return entry if entry is not None and entry.final else None
            return None

        entry = await eventually(finished, within=within)
        body = await self.journal.body(job.key, entry)
        assert body is not None
        return entry.facts, body

    async def freed(self, job: Job, *, within: float = 5.0) -> Free:
        def found() -> list[Free]:
            return [free for _, free in self.frees if free.job == job.key.job]

        await eventually(found, within=within)
        assert len(found()) == 1
        return found()[0]

    def freed_at(self, job: Job) -> float:
        return next(at for at, free in self.frees if free.job == job.key.job)

    async def segments(self, job: Job) -> list[tuple[int, bytes]]:
        """What OUT holds of the run, in the order in which it was stored."""
        assert job.order
        subject = subjects.segments_of_epoch(job.key, job.order.epoch)
        return [parse_frame(stored.data) for stored in await self.bus.from_sequence(OUT, subject)]

    async def kept(self, job: Job) -> bytes:
        """The segments put together; overlaps must say the same."""
        log = b""
        for offset, data in await self.segments(job):
            assert offset <= len(log)
            assert log[offset : offset + len(data)] == data[: len(log) - offset]
            log = log[:offset] + data + log[offset + len(data) :]
        return log

    @property
    def beat(self) -> Heartbeat:
        return self.beats[-1][1]


def events_of(log: bytes) -> list[Event]:
    return [decode_event(line) for line in log.splitlines()]


def text_of(log: bytes) -> str:
    return "".join(event.text or "" for event in events_of(log))


@contextlib.asynccontextmanager
async def world(nats: NatsServer) -> AsyncIterator[World]:
    async with connected(nats) as bus:
        made = World(nats, bus)
        await made.listen()
        yield made
