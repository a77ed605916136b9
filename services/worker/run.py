"""One run: a binding executed on the node, from the request to the acked `done`, or to being given back."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.contracts import subjects
from libs.common.contracts.codec import NO_JSON, Malformed, encode
from libs.common.contracts.control import Free, Run, RunAnswer, RunStatus
from libs.common.contracts.events import End, Event, line
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.jobs import MAX_RUN_S, Binding, Completion, Hint, Submission
from libs.common.contracts.nodes import Phase, Running, canonical_model
from libs.common.contracts.requests import Kind, Request, decode_request
from libs.common.contracts.subjects import JobKey, OutKey
from libs.common.folder import Entry, digest, ttl_s
from libs.common.ids import new_op_id
from libs.common.journal import Journal, Lost
from services.worker import metrics
from services.worker.clock import ServerClock
from services.worker.continuation import Continuation, continue_from
from services.worker.continuing import Carried, Joint, read_carried
from services.worker.endings import (
    Broke,
    Drop,
    Ending,
    Finish,
    Finished,
    GiveBack,
    Silent,
    Stopped,
    StopReason,
    classify,
)
from services.worker.health import Health
from services.worker.memory import Memory
from services.worker.ollama import Ollama
from services.worker.output import Output
from services.worker.patience import Expected, Patience
from services.worker.tokenlog import TokenLog
from services.worker.translate import ollama_request, timings_of, usage_of

log = structlog.get_logger()

# After the request was closed the node goes on for a while; until then the slot is taken (ollama-facts.md §2.6, measured):
LET_GO_DECODING_S = 0.04  # it stops at the next token, 10 to 35 ms
LET_GO_WAITING_S = 1.1  # in prefill it looks for a closed peer once a second; a load is aborted within 250 ms
CLOSE_S = 2.0  # closing a connection waits for nobody; this is for when it does
LOOK_S = 0.5  # how often it is looked whether the node has been silent for too long
OVERSLEPT_S = 1.0  # woken so much later, this process was stopped itself
RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")  # others load it anew (§3.5)
MAX_LOG = 64 * 1024 * 1024
KEEP_SEGMENTS_S = 7.0  # longer than the election of a leader (nats-jetstream.md P7)
DONE_RETRY_S = 1.0
LOOK_AGAIN_S = 0.25
MIN_LOOK_S = 0.02


@dataclass(frozen=True)
class Node:
    """What all runs of a worker share."""

    name: str
    boot: str
    bus: Bus
    journal: Journal
    ollama: Ollama
    clock: ServerClock
    memory: Memory
    health: Health
    in_memory: Callable[[str], bool | None]  # is this model? None when the node does not say
    patience: float = 1.0  # times all limits on silence
    answers: Callable[[str], None] = lambda model: None  # this model does: it is in memory
    make_room: Callable[[tuple[str, ...]], Awaitable[None]] | None = None  # unload these, if nobody uses them


@dataclass(eq=False)
class RunTask:
    """`execute` runs once; `stop` may be said at any time, the first reason stays, except that a fence outranks all.

    Once the ending is known, only a fence or a drain still matter: they end the waiting for `done` to be stored.
    """

    node: Node
    order: Run
    tokens: TokenLog = field(default_factory=TokenLog)
    phase: Phase = Phase.STARTING
    model: str = ""
    _stop: asyncio.Future[Stopped] | None = None
    _fenced: bool = False
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _first_output_ms: int | None = None
    _writing: bool = False  # what the node said is on its way out: that is not its silence

    def __post_init__(self) -> None:
        self._stop = asyncio.get_running_loop().create_future()
        self._ends_at = time.monotonic() + max(0.0, min(self.order.seconds_left, MAX_RUN_S))

    @property
    def key(self) -> JobKey:
        return JobKey(self.order.client, self.order.job)

    def describe(self) -> Running:
        return Running(
            client=self.key.client, job=self.key.job, epoch=self.order.epoch, phase=self.phase, model=self.model
        )

    def stop(self, reason: StopReason, text: str = "") -> None:
        self._fenced = self._fenced or reason is StopReason.FENCED
        if self._stop and not self._stop.done():
            self._stop.set_result(Stopped(reason, text))
        if reason in (StopReason.FENCED, StopReason.DRAIN):
            self._hurry.set()

    async def execute(self) -> RunAnswer:
        """What this boot will answer about this run from now on (`changes` is filled in by the caller)."""
        started = await self._read_records()
        if isinstance(started, RunAnswer):
            return started
        binding, bound, request_body = started
        self.model = binding.job.model
        out = Output(self.node.bus, OutKey(self.node.name, *self.key, self.order.epoch), self.tokens)
        async with out.beating():
            ending = await self._generate(binding, request_body, out)
            outcome = Drop() if self._fenced else classify(ending)
            metrics.runs.labels(type(outcome).__name__.lower()).inc()
            match outcome:
                case Finish():
                    return await self._finish(binding, bound, outcome, out)
                case GiveBack(fault):
                    await out.keep_all(within=KEEP_SEGMENTS_S)
                    return RunAnswer(status=RunStatus.GIVEN_BACK, changes=0, fault=fault)
                case Drop():
                    return RunAnswer(status=RunStatus.FINISHED, changes=0, reason="fenced")

    # -- before --------------------------------------------------------------------------------------------------------

    async def _read_records(self) -> tuple[Binding, Entry, bytes] | RunAnswer:
        """The binding and the request, by sequence, from the leader; what stands there counts, not what the order says."""
        try:
            active, new = await self._records()
            if (active is None or new is None) and self.node.bus.replicated:
                await asyncio.sleep(LOOK_AGAIN_S)  # a leader just deposed can be stale (DESIGN §3)
                active, new = await self._records()
            if active is None or new is None:
                return _refused("the binding or the request is gone")
            (active_subject, bound), (new_subject, submitted) = active, new
            binding = bound.facts
            if active_subject != subjects.record(self.key, "active") or not isinstance(binding, Binding):
                return _refused("no binding at that sequence")
            if (binding.node, binding.boot, binding.epoch) != (self.node.name, self.node.boot, self.order.epoch):
                return _refused("the binding is not for this boot")
            if new_subject != subjects.record(self.key, "new") or not isinstance(submitted.facts, Submission):
                return _refused("no request at that sequence")
            if self.node.memory.too_old(bound.at_ms, self.node.clock.now_ms()):
                return _refused("the binding is older than this boot's memory: it may have run already")
            self.node.clock.learn(bound.at_ms)
            carried = await self.node.journal.body(self.key, bound)
            request = await self.node.journal.body(self.key, submitted)
        except BusError as error:
            return RunAnswer(status=RunStatus.GIVEN_BACK, changes=0, reason=str(error))
        except Malformed as error:
            fault = Fault(code=Code.INTERNAL, message=f"the job's record cannot be read: {error}")
            return RunAnswer(status=RunStatus.GIVEN_BACK, changes=0, fault=fault)
        if carried is None or request is None:
            return _refused("a part of the request is gone")
        self.tokens = TokenLog(carried)
        return binding, bound, request

    async def _records(self) -> tuple[tuple[str, Entry] | None, tuple[str, Entry] | None]:
        journal = self.node.journal
        return await asyncio.gather(journal.record_at(self.order.revision), journal.record_at(self.order.submitted))

    # -- during --------------------------------------------------------------------------------------------------------

    async def _generate(self, binding: Binding, body: bytes, out: Output) -> Ending:
        try:
            request = decode_request(body)
            carried = read_carried(self.tokens.read(0)) if binding.base else None
        except Malformed as error:
            return Broke(f"the stored request cannot be read: {error}")
        assert self._stop
        if self._stop.done():
            return self._stop.result()  # before the node has heard of it
        if time.monotonic() >= self._ends_at:
            return Stopped(StopReason.DEADLINE)
        self.phase = Phase.WAITING
        expected = Expected(
            prompt_tokens=binding.job.prompt_tokens + (carried.tokens if carried else 0),
            quiet=bool(request.tools) or request.format != NO_JSON,
            renders=carried is not None,
        )
        patience = Patience(expected, since=time.monotonic(), scale=self.node.patience)
        health, model = self.node.health, canonical_model(self.model)
        health.began(self, model, expected.prompt_tokens)
        consuming = asyncio.create_task(self._consume(binding.job.kind, request, carried, out, patience))
        try:
            ending = await self._until_cut(consuming, self._stop, patience)
            now = time.monotonic()
            if isinstance(ending, Silent):  # before the slot is free, so that nothing new comes here
                health.gave_up(model, ending.stage, self._runner_options(request), now)
            elif isinstance(ending, Stopped) and not self._writing:
                share = patience.doubt(now, health.others(self))
                health.cut_short(model, patience.stage, self._runner_options(request), share)
            if ending is not None:
                await self._close(consuming)
            return ending or _ending_of(consuming)
        finally:
            health.ended(self)
            consuming.cancel()  # when this itself is cancelled

    def _runner_options(self, request: Request) -> dict[str, Any]:
        options = {name: value for name, value in (request.options or {}).items() if name in RUNNER_OPTIONS}
        return options if self.order.num_ctx is None else options | {"num_ctx": self.order.num_ctx}

    async def _until_cut(
        self, consuming: asyncio.Task[Ending], stop: asyncio.Future[Stopped], patience: Patience
    ) -> Ending | None:
        """None when it ended by itself; else the reason to end it."""
        waits: list[asyncio.Future[Any]] = [consuming, stop]
        while True:
            now = time.monotonic()
            patience.look(now, in_memory=self.node.in_memory(self.model))
            others = self.node.health.others(self)
            left = patience.left(now, others)
            if now >= self._ends_at:
                return Stopped(StopReason.DEADLINE)
            if left <= 0 and not self._writing:
                return Silent(patience.stage, patience.limit(others))
            timeout = min(self._ends_at - now, max(left, MIN_LOOK_S), LOOK_S)
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if consuming.done():
                return None
            if stop.done():
                return stop.result()
            if (overslept := time.monotonic() - now - timeout) > OVERSLEPT_S:
                patience.forgive(overslept)

    async def _close(self, consuming: asyncio.Task[Ending]) -> None:
        """The slot is free when this returns."""
        consuming.cancel()  # closes the connection: Ollama's only way to be told
        hold = LET_GO_DECODING_S if self.phase is Phase.DECODING else LET_GO_WAITING_S
        self.phase = Phase.STOPPING
        await asyncio.wait([consuming], timeout=CLOSE_S)
        await asyncio.sleep(hold)
        if consuming.done() and not consuming.cancelled() and (error := consuming.exception()) is not None:
            log.warning("run.closed_badly", job_id=self.key.job, error=repr(error))

    async def _consume(
        self, kind: Kind, request: Request, carried: Carried | None, out: Output, patience: Patience
    ) -> Ending:
        joint: Joint | None = None
        if self.order.evict and self.node.make_room is not None:
            await self.node.make_room(self.order.evict)
        if carried is not None:
            found = await continue_from(self.node.ollama, kind, request, carried)
            if not isinstance(found, Continuation):
                return found
            kind, request, joint = found
            patience.rendered(time.monotonic())
        path, payload = ollama_request(
            kind,
            request,
            keep_alive=self.order.keep_alive,
            num_ctx=self.order.num_ctx,
            whole=carried is None,  # an answer that outgrows its context has always gone on without its beginning
        )
        ending: Ending = Broke("the node's stream ended without a word")
        async with contextlib.aclosing(self.node.ollama.stream(path, payload)) as stream:
            async for item in stream:
                if not isinstance(item, list):
                    ending = item
                    continue
                self._writing = True
                self.node.health.heard(self, was_cold=patience.was_cold)
                if self._first_output_ms is None:
                    self._first_output_ms, self.phase = self.node.clock.now_ms(), Phase.DECODING
                    self.node.answers(self.model)
                for event in joint.join(item) if joint else item:
                    self.tokens.append(event)
                await out.flush()
                self._writing = False
                patience.heard(time.monotonic())
                if len(self.tokens) > MAX_LOG:
                    return Stopped(StopReason.TOO_LARGE, f"the answer is larger than {MAX_LOG >> 20} MiB")
        if joint and isinstance(ending, Finished):
            held, final = joint.end(ending.final)
            for event in held:
                self.tokens.append(event)
            ending = Finished(final)
        return ending

    # -- after ---------------------------------------------------------------------------------------------------------

    async def _finish(self, binding: Binding, bound: Entry, outcome: Finish, out: Output) -> RunAnswer:
        """`done`, then the end event: an answer seen as finished is finished (DESIGN §4)."""
        self.phase = Phase.STOPPING
        end = Event(end=End(state=outcome.state, final=outcome.final, fault=outcome.fault))
        seen = len(self.tokens)
        whole = self.tokens.read(0) + line(end)
        completion = self._completion(binding, bound, outcome, whole)
        while True:
            ttl = ttl_s(binding.job, created_ms=binding.created_ms, now_ms=self.node.clock.now_ms(), done=True)
            try:
                sequence = await self.node.journal.write(
                    self.key, "done", completion, whole, expected=bound.sequence, ttl=ttl
                )
                break
            except Lost as lost:
                stands = lost.newest.facts if lost.newest else None
                log.info("run.fenced", job_id=self.key.job, epoch=self.order.epoch, stands=type(stands).__name__)
                return RunAnswer(status=RunStatus.FINISHED, changes=0, reason="fenced")
            except BusError as error:
                # Counts as running until it is written; the job's deadline is the last limit: its records vanish then.
                log.warning("run.done_delayed", job_id=self.key.job, error=str(error))
                if ttl <= 2 + binding.job.result_ttl_s / 2:
                    return RunAnswer(status=RunStatus.GIVEN_BACK, changes=0, reason="could not store the result")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DONE_RETRY_S):
                        await self._hurry.wait()
                if self._fenced:
                    return RunAnswer(status=RunStatus.FINISHED, changes=0, reason="fenced")
                if self._hurry.is_set():
                    await out.keep_all(within=KEEP_SEGMENTS_S)
                    return RunAnswer(status=RunStatus.GIVEN_BACK, changes=0, reason="could not store the result")
        self.tokens.append(end)  # only now: what a reader of the log sees as ended has ended
        await out.flush()
        hint = Hint(state=outcome.state, epoch=self.order.epoch, sequence=sequence)
        await self.node.bus.publish(subjects.hint(self.key), encode(hint))
        log.info(
            "job.ended", job_id=self.key.job, client=self.key.client, state=outcome.state, epoch=self.order.epoch,
            model=binding.job.model, kind=binding.job.kind, log_bytes=seen, code=outcome.fault.code if outcome.fault else None,
            tokens_out=completion.usage.completion_tokens if completion.usage else None,
            ttft_s=completion.timings.first_token if completion.timings else None,
        )  # fmt: skip
        return RunAnswer(status=RunStatus.FINISHED, changes=0)

    def _completion(self, binding: Binding, bound: Entry, outcome: Finish, whole: bytes) -> Completion:
        final: dict[str, Any] = outcome.final or {}
        first = self._first_output_ms
        return Completion(
            op_id=new_op_id(),
            job=binding.job,
            submitted=binding.submitted,
            created_ms=binding.created_ms,
            state=outcome.state,
            epoch=self.order.epoch,
            past=binding.past,
            attempts=binding.attempts,
            node=self.node.name,
            boot=self.node.boot,
            started_ms=first,
            finished_ms=self.node.clock.now_ms(),
            decision=binding.decision,
            usage=usage_of(final) if outcome.final is not None else None,
            timings=timings_of(
                final,
                wait_s=(bound.at_ms - binding.created_ms) / 1000,
                first_token_s=(first - binding.created_ms) / 1000 if first is not None else None,
            ),
            fault=outcome.fault,
            log_size=len(whole),
            log_digest=digest(whole),
        )


def _ending_of(consuming: asyncio.Task[Ending]) -> Ending:
    if (error := consuming.exception()) is not None:
        log.error("run.mistaken", exc_info=error)
        return Broke(f"the worker made a mistake ({type(error).__name__})")
    return consuming.result()


def _refused(reason: str) -> RunAnswer:
    return RunAnswer(status=RunStatus.REFUSED, changes=0, reason=reason)


def freed(node: Node, run: RunTask, answer: RunAnswer) -> Free:
    return Free(
        node=node.name,
        boot=node.boot,
        client=run.key.client,
        job=run.key.job,
        epoch=run.order.epoch,
        changes=answer.changes,
        given_back=answer.status is RunStatus.GIVEN_BACK,
        fault=answer.fault,
    )


def with_changes(answer: RunAnswer, changes: int) -> RunAnswer:
    return msgspec.structs.replace(answer, changes=changes)
