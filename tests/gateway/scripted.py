"""A router and a worker that do exactly what a test tells them: records by compare-and-set, chunks on core NATS."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from libs.common.bus.connection import Bus
from libs.common.bus.link import Message
from libs.common.contracts import subjects
from libs.common.contracts.codec import encode
from libs.common.contracts.control import FreezePrefix, decode_read
from libs.common.contracts.events import MAX_CHUNK, End, Event, frame, line
from libs.common.contracts.faults import Failed
from libs.common.contracts.jobs import Binding, Completion, Hint, PastEpoch, Submission, decode_submission
from libs.common.contracts.requests import Kind
from libs.common.contracts.subjects import JobKey, OutKey
from libs.common.folder import digest
from libs.common.ids import new_job_id, new_op_id
from libs.common.journal import Journal
from libs.common.states import JobState
from services.gateway.sse import log_frames
from services.gateway.watch import Item, Log, Watch

NODE, BOOT = "node-a", "boot-a"
END = line(Event(end=End(state=JobState.SUCCEEDED, final={"done": True, "done_reason": "stop", "eval_count": 3})))


def events(*texts: str) -> bytes:
    return b"".join(line(Event(text=text)) for text in texts)


def submission(**changes: Any) -> Submission:
    made = Submission(
        op_id=new_op_id(), kind=Kind.CHAT, model="m:1", route="/jobs", deadline_s=600, result_ttl_s=600, size=2, digest="d"
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


class Script:
    """One job. `log` is what its worker would answer to a read; what goes out live is said in so many words."""

    def __init__(self, bus: Bus, key: JobKey | None = None) -> None:
        self.bus = bus
        self.key = key or JobKey("alice", new_job_id())
        self.journal = Journal(bus)
        self.newest = 0
        self.submitted = 0
        self.submission = submission()
        self.created_ms = 0  # of `new`
        self.binding: Binding | None = None
        self.log = b""
        self.reads: list[int] = []
        self.silent = False  # reads get no answer

    # -- records -------------------------------------------------------------------------------------------------------

    async def submit(self) -> int:
        self.newest = self.submitted = await self.journal.write(
            self.key, "new", self.submission, b"{}", expected=0, ttl=600
        )
        await self.adopt()
        return self.newest

    async def adopt(self) -> None:
        """Take over the job that a gateway has submitted."""
        stored = await self.bus.last("JOBS", subjects.record(self.key, "new"))
        assert stored is not None
        self.newest = self.submitted = stored.sequence
        self.created_ms = stored.at_ms
        self.submission = decode_submission(stored.headers["Arriero-Facts"])

    async def bind(
        self, *, carried: bytes = b"", past: tuple[PastEpoch, ...] = (), hint: bool = True, **more: Any
    ) -> int:
        """The new epoch."""
        self.log = carried
        return await self._active(hint, body=carried, node=NODE, boot=BOOT, base=len(carried), past=past, **more)

    async def requeue(self, *, past: tuple[PastEpoch, ...], hint: bool = True, **more: Any) -> int:
        return await self._active(hint, past=past, **more)

    async def _active(self, hint: bool, *, body: bytes = b"", **facts: Any) -> int:
        binding = Binding(
            op_id=new_op_id(), job=self.submission, submitted=self.submitted, created_ms=self.created_ms,
            epoch=self.newest, **facts,
        )  # fmt: skip
        self.newest = await self.journal.write(self.key, "active", binding, body, expected=self.newest, ttl=600)
        self.binding = binding
        if hint:
            await self.hint(JobState.BOUND if binding.node else JobState.QUEUED)
        return binding.epoch

    async def finish(
        self, log: bytes | None = None, *, state: JobState = JobState.SUCCEEDED, hint: bool = True, **more: Any
    ) -> bytes:
        """Writes `done`; the whole log."""
        binding = self.binding
        whole = self.log + END if log is None else log
        completion = Completion(
            op_id=new_op_id(), job=self.submission, submitted=self.submitted, created_ms=self.created_ms,
            state=state, finished_ms=int(time.time() * 1000), log_size=len(whole), log_digest=digest(whole),
            **{
                "epoch": binding.epoch if binding else self.newest, "past": binding.past if binding else (),
                "node": binding.node if binding else None, **more,
            },
        )  # fmt: skip
        self.newest = await self.journal.write(self.key, "done", completion, whole, expected=self.newest, ttl=600)
        if hint:
            await self.hint(state)
        return whole

    async def hint(self, state: JobState) -> None:
        assert self.newest
        epoch = self.binding.epoch if self.binding else 0
        await self.bus.publish(subjects.hint(self.key), encode(Hint(state=state, epoch=epoch, sequence=self.newest)))

    # -- the worker ----------------------------------------------------------------------------------------------------

    async def say(self, offset: int, chunk: bytes, *, epoch: int | None = None) -> None:
        """One live chunk, said and not kept."""
        assert self.binding
        out = OutKey(NODE, *self.key, self.binding.epoch if epoch is None else epoch)
        await self.bus.publish(subjects.chunk(out), frame(offset, chunk))

    async def write(self, *chunks: bytes, live: bool = True) -> None:
        """Append to the log, and say it live unless it is to be missed."""
        for chunk in chunks:
            offset = len(self.log)
            self.log += chunk
            if live:
                await self.say(offset, chunk)

    async def end(self) -> bytes:
        """As a worker ends: `done`, then the end event. The whole log."""
        whole = await self.finish(hint=False)
        await self.write(END)
        await self.hint(JobState.SUCCEEDED)
        return whole

    async def freeze(self, epoch: int) -> bytes:
        return await self.bus.request(subjects.prefix(self.key), encode(FreezePrefix(epoch=epoch)))

    async def _read(self, message: Message) -> bytes | None:
        wish = decode_read(message.data)
        if JobKey(wish.client, wish.job) != self.key:
            return b""
        self.reads.append(wish.offset)
        if self.silent:
            return None
        if self.binding is None or wish.epoch != self.binding.epoch or wish.offset > len(self.log):
            return b""
        return frame(wish.offset, self.log[wish.offset : wish.offset + MAX_CHUNK])

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator["Script"]:
        """The worker's side of catch-up."""
        serving = await self.bus.serve(subjects.worker(NODE, BOOT, "read"), self._read)
        try:
            yield self
        finally:
            await serving.stop()


class Reader:
    """Reads a watch in a task of its own; `hold` stops it between two items, as a slow client does."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.items: list[Item] = []
        self.frames = b""
        self.go = asyncio.Event()
        self.go.set()
        self.failure: Failed | None = None
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            async with contextlib.aclosing(self.watch.items()) as items:
                async for item in items:
                    self.items.append(item)
                    if isinstance(item, Log):
                        self.frames += log_frames(item.position, item.events)
                    await self.go.wait()
        except Failed as failure:
            self.failure = failure

    @property
    def text(self) -> bytes:
        """Everything shown, as one log."""
        return b"".join(item.events for item in self.items if isinstance(item, Log))

    @property
    def ended(self) -> bool:
        return bool(self.items) and isinstance(self.items[-1], Log) and self.items[-1].ended


@contextlib.asynccontextmanager
async def reading(watch: Watch) -> AsyncIterator[Reader]:
    async with watch:
        reader = Reader(watch)
        try:
            yield reader
        finally:
            reader.task.cancel()
            await asyncio.gather(reader.task, return_exceptions=True)
