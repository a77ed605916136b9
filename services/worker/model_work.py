"""Loads, unloads and pulls that operators and the router ask this worker for. Runs never wait for any of it.

One work for each (op, model) at a time; who asks again joins it and hears how far it is. It goes on when nobody asks any more.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import structlog

from libs.common.bus.link import Message
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.control import ModelAnswer, ModelOp, ModelOrder, ModelWork, decode_model_order
from libs.common.contracts.nodes import canonical_model
from services.worker.ollama import NodeAway, NodeRefused, Ollama
from services.worker.patience import LOAD_S
from services.worker.presence import Inventory
from services.worker.pulling import Pull

log = structlog.get_logger()

REMEMBER_S = 60.0  # how a work ended
MAX_REMEMBERED = 200
MAX_AT_WORK = 64
MAX_JOINED = 200
PULLS_AT_ONCE, OTHERS_AT_ONCE = 2, 3  # each takes a connection; Ollama loads one model after the other anyway
ASK_S = 30.0  # for the answer to an unload: Ollama gives it at once
PULL_SILENCE_S = 600.0  # between two lines; checking the digest of 40 GB on a slow disk is silent for minutes
UNLOAD_S = 3600.0  # answers in flight end first, and one may take that long
UNLOAD_AGAIN_S = 10.0  # with no run of ours at it; a request of somebody else may have renewed its time
UNLOAD_TIMES = 3
LOOK_S = 0.25
ROOM_S = 10.0  # an unload takes 0.5 to 5 s until the memory is free (ollama-facts.md §3.7)
TELL_S = 10.0  # for the inventory to be asked again


BEGINS = ModelAnswer(state=ModelWork.RUNNING, status="begins")


class WorkFailed(Exception):
    """A sentence for whoever asked."""


@dataclass(eq=False)
class _Work:
    order: ModelOrder  # the newest: keep_alive and num_ctx of those who joined count, too
    op_ids: set[str] = field(default_factory=set)
    answer: ModelAnswer = BEGINS
    ended_at: float = 0.0
    load_s: float = 0.0  # as in ModelAnswer

    @property
    def running(self) -> bool:
        return self.answer.state is ModelWork.RUNNING

    def tell(self, status: str) -> None:
        self.answer = ModelAnswer(state=ModelWork.RUNNING, status=status)


WorkKey = tuple[ModelOp, str]


class ModelDesk:
    """`in_use`: canonical names of the models that runs of this worker are at."""

    def __init__(
        self, ollama: Ollama, inventory: Inventory, in_use: Callable[[], Collection[str]], *, patience: float = 1.0
    ) -> None:
        self._ollama = ollama
        self._inventory = inventory
        self._in_use = in_use
        self._load_s = LOAD_S * patience
        self._works: dict[WorkKey, _Work] = {}  # in the order of their beginning
        self._turns = {op: asyncio.Semaphore(OTHERS_AT_ONCE) for op in (ModelOp.LOAD, ModelOp.UNLOAD)}
        self._turns[ModelOp.PULL] = asyncio.Semaphore(PULLS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)

    # -- answers -------------------------------------------------------------------------------------------------------

    async def answer(self, message: Message) -> bytes | None:
        try:
            order = decode_model_order(message.data)
        except Malformed as error:
            log.warning("model.malformed", error=str(error))
            return encode(ModelAnswer(state=ModelWork.FAILED, status=str(error)))
        return encode(self._answer(order, time.monotonic()))

    def _answer(self, order: ModelOrder, now: float) -> ModelAnswer:
        self._forget(now)
        key = (order.op, canonical_model(order.model))
        work = self._works.get(key)
        if work is not None and work.running:
            if order.op_id not in work.op_ids and len(work.op_ids) < MAX_JOINED:
                work.op_ids.add(order.op_id)
                work.order = order
            return work.answer
        if work is not None and order.op_id in work.op_ids:
            return work.answer
        if sum(work.running for work in self._works.values()) >= MAX_AT_WORK:
            message = f"this node has {MAX_AT_WORK} works on models to do already; ask again when one has ended"
            return ModelAnswer(state=ModelWork.FAILED, status=message)
        for op in ModelOp:  # what was done to this model before says nothing any more
            if op is not order.op and (other := self._works.get((op, key[1]))) is not None and not other.running:
                other.op_ids.discard("")
        work = self._works[key] = _Work(order, {order.op_id})
        task = asyncio.create_task(self._carry_out(key, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return work.answer

    def _forget(self, now: float) -> None:
        ended = sorted((work.ended_at, key) for key, work in self._works.items() if not work.running)
        for n, (ended_at, key) in enumerate(ended):
            if now - ended_at > REMEMBER_S or len(ended) - n > MAX_REMEMBERED:
                del self._works[key]

    # -- carrying out --------------------------------------------------------------------------------------------------

    async def _carry_out(self, key: WorkKey, work: _Work) -> None:
        op, model = key
        began = time.monotonic()
        do = {ModelOp.LOAD: self._load, ModelOp.UNLOAD: self._unload, ModelOp.PULL: self._pull}[op]
        try:
            if self._turns[op].locked():
                work.tell("waits for its turn")
            async with self._turns[op]:
                status = await do(model, work)
            await self._tell(disk=op is ModelOp.PULL)
            state = ModelWork.DONE
        except (WorkFailed, NodeRefused, NodeAway) as error:
            state, status = ModelWork.FAILED, _sentence(error)
        except Exception:
            log.exception("model.mistaken", op=op, model=model)
            state, status = ModelWork.FAILED, "the worker made a mistake; its log says which"
        work.answer = ModelAnswer(
            state=state, status=status, completed=work.answer.completed, total=work.answer.total, load_s=work.load_s
        )  # fmt: skip
        work.ended_at = time.monotonic()
        log.info("model.work", op=op, model=model, state=state, status=status, seconds=round(work.ended_at - began, 2))

    async def _load(self, model: str, work: _Work) -> str:
        while True:
            order = work.order
            work.tell("loading")
            if order.evict:
                await self.make_room(order.evict)
            path, body = self._load_request(order, model)
            alone, began = self._loads_alone(model), time.monotonic()
            try:
                async with asyncio.timeout(self._load_s):
                    said = await self._whole(path, body)
            except TimeoutError:
                raise WorkFailed(f"{model} was not loaded within {self._load_s:g} s") from None
            if alone and not work.load_s:
                work.load_s = _seconds(said.get("load_duration")) or time.monotonic() - began
            # Else somebody joined with other wishes: a load of what is loaded takes milliseconds.
            if work.order is order:
                return "loaded"

    def _loads_alone(self, model: str) -> bool:
        """Will the next request that brings this model into memory take as long as that takes, and no longer? Ollama loads one
        after the other, and says nothing of it (ollama-facts.md §1.8, §3.1)."""
        at_work = {name for (op, name), work in self._works.items() if op is ModelOp.LOAD and work.running}
        others = (at_work - {model}).union(self._in_use())
        return self._inventory.in_memory(model) is False and all(map(self._inventory.in_memory, others))

    def _load_request(self, order: ModelOrder, model: str) -> tuple[str, dict[str, Any]]:
        """Ollama's load-only request (ollama-facts.md §1.8). Without a wish it keeps the context that the model has in memory:
        another one would be a load anew (§3.5)."""
        body: dict[str, Any] = {"model": order.model}
        if order.keep_alive is not None:
            body["keep_alive"] = order.keep_alive
        if num_ctx := order.num_ctx or self._inventory.context_of(model):
            body["options"] = {"num_ctx": num_ctx}
        if self._inventory.only_embeds(model):
            return "/api/embed", {**body, "input": []}
        return "/api/generate", {**body, "stream": False}

    async def _unload(self, model: str, work: _Work) -> str:
        """Ollama says yes at once and waits for the answers in flight; the work is done when the model is gone."""
        give_up = time.monotonic() + UNLOAD_S
        asked, ask_at = 0, 0.0
        while (now := time.monotonic()) < give_up:
            if now >= ask_at and asked < UNLOAD_TIMES:
                await self._ask_unload(work.order.model)
                asked, ask_at = asked + 1, now + UNLOAD_AGAIN_S
            await self._inventory.refresh()
            if self._inventory.in_memory(model) is False:
                return "unloaded"
            if model in self._in_use():
                work.tell("waits for the answers that are being generated")
                ask_at = now + UNLOAD_AGAIN_S
            elif now >= ask_at:
                raise WorkFailed(f"{model} is still in memory: somebody else keeps using this Ollama")
            else:
                work.tell("unloading")
            await asyncio.sleep(LOOK_S)
        raise WorkFailed(f"{model} is still in use after {UNLOAD_S:g} s; drain the node, or wait and ask again")

    async def _ask_unload(self, model: str) -> None:
        try:
            async with asyncio.timeout(ASK_S):
                await self._whole("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
        except TimeoutError:
            raise WorkFailed(f"the node's Ollama did not answer within {ASK_S:g} s") from None

    async def _pull(self, model: str, work: _Work) -> str:
        pull = Pull()
        work.answer = pull.answer
        async with contextlib.aclosing(self._ollama.lines("/api/pull", {"model": work.order.model})) as lines:
            while True:
                try:
                    async with asyncio.timeout(PULL_SILENCE_S):
                        line = await anext(lines, None)
                except TimeoutError:
                    raise WorkFailed(f"the pull stands still for {PULL_SILENCE_S:g} s; ask again to go on") from None
                if line is None:
                    break
                pull.feed(line)
                work.answer = pull.answer
        if not pull.succeeded:
            raise WorkFailed("the pull ended too soon; ask again to go on")
        return "pulled"

    async def _whole(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Its last line."""
        line: dict[str, Any] = {}
        async with contextlib.aclosing(self._ollama.lines(path, body)) as lines:
            async for line in lines:  # noqa: B007
                pass
        return line

    async def _tell(self, *, disk: bool) -> None:
        """The next heartbeat has it; a node that is slow to say so changes nothing about what was done."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TELL_S):
                await self._inventory.refresh(disk=disk)

    # -- before a run --------------------------------------------------------------------------------------------------

    async def make_room(self, models: Collection[str]) -> None:
        """Unload what is loaded and not in use, so that another model fits. Returns when they are gone, or after a while: Ollama
        makes room itself, if not as wisely."""
        victims = [
            model
            for model in map(canonical_model, models)
            if self._inventory.in_memory(model) and model not in self._in_use()
        ]
        try:
            async with asyncio.timeout(ROOM_S):
                for model in victims:
                    await self._whole("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
                while victims:
                    await self._inventory.refresh()
                    victims = [model for model in victims if self._inventory.in_memory(model)]
                    if victims:
                        await asyncio.sleep(LOOK_S)
        except (NodeRefused, NodeAway) as error:
            log.warning("evict.failed", models=victims, error=str(error))
        except TimeoutError:
            log.warning("evict.late", models=victims, seconds=ROOM_S)


def _seconds(nanoseconds: Any) -> float:
    return nanoseconds / 1e9 if isinstance(nanoseconds, int | float) else 0.0


def _sentence(error: Exception) -> str:
    return f"the node's Ollama says: {error}" if isinstance(error, NodeRefused) else str(error)
