"""The slot table: what runs, what ran, and the answers to `run`, `cancel`, `read`, `ping`."""

import asyncio
import time

import structlog

from libs.common.bus.link import Message
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.control import (
    CancelAnswer,
    Pong,
    RunAnswer,
    RunStatus,
    decode_cancel_run,
    decode_read,
    decode_run,
)
from libs.common.contracts.events import MAX_CHUNK, frame
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.nodes import Running, canonical_model
from libs.common.contracts.subjects import JobKey
from services.worker import metrics
from services.worker.endings import StopReason
from services.worker.memory import RunKey
from services.worker.run import Node, RunTask, freed, with_changes
from services.worker.tokenlog import TokenLog

log = structlog.get_logger()

LOG_KEPT_S = 30.0  # after the run, for gateways that missed the last chunk
MAX_LOGS_KEPT = 500
MAX_BYTES_KEPT = 64 * 1024 * 1024
OVERCOMMIT = 2  # runs beyond the slots that are taken on: two routers may overlap; more are refused


class Runs:
    def __init__(self, node: Node, slots: int) -> None:
        self.slots = slots
        self.draining = False
        self.changes = 0  # of the table; see contracts.nodes.Heartbeat
        self.changed = asyncio.Event()
        self._node = node
        self._memory = node.memory
        self._running: dict[RunKey, RunTask] = {}
        self._ended: dict[RunKey, tuple[float, TokenLog]] = {}  # oldest first
        self._bytes_kept = 0
        self._forgetting: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def describe(self) -> tuple[Running, ...]:
        return tuple(run.describe() for run in self._running.values())

    def models(self) -> set[str]:
        """Canonical names of those that runs are at."""
        return {canonical_model(run.model) for run in self._running.values() if run.model}

    def stop_all(self, reason: StopReason, text: str = "") -> None:
        for run in self._running.values():
            run.stop(reason, text)

    async def idle(self) -> None:
        """Returns when nothing runs any more and everybody has been told."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """End what still runs, without a word to anybody: who did not drain is taken for dead."""
        if self._forgetting:
            self._forgetting.cancel()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=1)

    # -- answers -------------------------------------------------------------------------------------------------------

    async def run(self, message: Message) -> bytes | None:
        try:
            order = decode_run(message.data)
        except Malformed as error:
            log.warning("run.malformed", error=str(error))
            return encode(RunAnswer(status=RunStatus.REFUSED, changes=self.changes, reason=str(error)))
        key = (JobKey(order.client, order.job), order.epoch)
        if key in self._running:
            return self._answer(RunStatus.RUNNING)
        if (known := self._memory.recall(key)) is not None:
            return encode(with_changes(known, self.changes))
        if self.draining:
            return self._answer(RunStatus.REFUSED, "draining")
        if len(self._running) >= self.slots + OVERCOMMIT:
            return self._answer(RunStatus.REFUSED, "no slot")
        run = RunTask(self._node, order)
        self._running[key] = run
        self._change()
        task = asyncio.create_task(self._carry_out(key, run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return self._answer(RunStatus.RUNNING)

    async def cancel(self, message: Message) -> bytes | None:
        try:
            wish = decode_cancel_run(message.data)
        except Malformed as error:
            log.warning("cancel.malformed", error=str(error))
            return None
        key = (JobKey(wish.client, wish.job), wish.epoch)
        if (run := self._running.get(key)) is not None:
            run.stop(StopReason.FENCED if wish.fenced else StopReason.CANCELLED, wish.reason)
        elif self._memory.recall(key) is None:
            # Counts as seen: whoever asks for this run later hears that it ended here (DESIGN §3).
            answer = RunAnswer(status=RunStatus.FINISHED, changes=self.changes, reason="cancelled before it began")
            self._memory.remember(key, answer, self._node.clock.now_ms())
        return encode(CancelAnswer(known=run is not None, changes=self.changes))

    async def read(self, message: Message) -> bytes | None:
        """A chunk of the log from an offset on; nothing when this boot does not know the run."""
        try:
            wish = decode_read(message.data)
        except Malformed:
            return b""
        key = (JobKey(wish.client, wish.job), wish.epoch)
        if (run := self._running.get(key)) is not None:
            tokens = run.tokens
        elif key in self._ended:
            tokens = self._ended[key][1]
        else:
            return b""
        if not 0 <= wish.offset <= len(tokens):
            return b""
        return frame(wish.offset, tokens.read(wish.offset, MAX_CHUNK))

    async def ping(self, message: Message) -> bytes | None:
        return encode(Pong(node=self._node.name, boot=self._node.boot))

    def _answer(self, status: RunStatus, reason: str = "") -> bytes:
        return encode(RunAnswer(status=status, changes=self.changes, reason=reason))

    # -- carrying out --------------------------------------------------------------------------------------------------

    async def _carry_out(self, key: RunKey, run: RunTask) -> None:
        structlog.contextvars.bind_contextvars(job_id=run.key.job, epoch=run.order.epoch)
        try:
            answer = await run.execute()
        except Exception:
            log.exception("run.failed")
            # A fault, so that it counts: what fails the same way every time must not go round for ever.
            fault = Fault(code=Code.INTERNAL, message="the worker made a mistake; its log says which")
            answer = RunAnswer(status=RunStatus.GIVEN_BACK, changes=0, fault=fault)
        del self._running[key]
        self._change()
        answer = with_changes(answer, self.changes)
        # Refusals too: whoever asks again must hear the reason, not `running` once more.
        self._memory.remember(key, answer, self._node.clock.now_ms())
        self._keep_log(key, run.tokens)
        if answer.status is not RunStatus.FINISHED:
            log.info(
                "run.ended",
                status=answer.status,
                reason=answer.reason,
                code=answer.fault.code if answer.fault else None,
            )
        await self._node.bus.publish(subjects.router("free"), encode(freed(self._node, run, answer)))

    def _keep_log(self, key: RunKey, tokens: TokenLog) -> None:
        self._ended[key] = (time.monotonic(), tokens)
        self._bytes_kept += len(tokens)
        self._forget_logs()

    def _forget_logs(self) -> None:
        """Those that are too old or too many; looks again by itself, so that an idle worker holds nothing."""
        oldest_allowed = time.monotonic() - LOG_KEPT_S
        while self._ended:
            key, (ended_at, tokens) = next(iter(self._ended.items()))
            too_many = len(self._ended) > MAX_LOGS_KEPT or self._bytes_kept > MAX_BYTES_KEPT
            if ended_at > oldest_allowed and not too_many:
                break
            del self._ended[key]
            self._bytes_kept -= len(tokens)
        if self._ended and self._forgetting is None:
            self._forgetting = asyncio.get_running_loop().call_later(LOG_KEPT_S, self._look_again)

    def _look_again(self) -> None:
        self._forgetting = None
        self._forget_logs()

    def _change(self) -> None:
        self.changes += 1
        self.changed.set()
        metrics.running.set(len(self._running))
