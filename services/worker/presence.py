"""Heartbeats: what the node has, holds and does, every two seconds and at once when a run ends; and who else claims the node."""

import asyncio
import time
from importlib.metadata import version

import msgspec
import structlog

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away, BusError, NoResponders, Refused
from libs.common.bus.link import Message, Subscription
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.control import decode_pong
from libs.common.contracts.nodes import (
    BEAT_S,
    RECORD_TTL_S,
    DiskModel,
    Heartbeat,
    LoadedModel,
    canonical_model,
    decode_heartbeat,
)
from libs.common.contracts.streams import NODES, key_subject
from services.worker import metrics
from services.worker.clock import ServerClock
from services.worker.health import Health
from services.worker.ollama import NodeAway, Ollama, Shown
from services.worker.runs import Runs

log = structlog.get_logger()

MIN_BEAT_S = 0.05  # between two heartbeats, however much changes
SHOW_S = 1.0  # nobody waits long for what one model is
SILENT_S = 60.0  # one that does not say is not asked again for so long
TAGS_EVERY_S = 10.0  # what is on disk changes seldom, and the node reads its whole manifest folder for it
CUT_OFF_S = 30.0  # without NATS for so long: the generations stop (DESIGN §3)


class Inventory:
    """What the node's Ollama says of itself, asked in the background; a slow answer never delays a heartbeat."""

    def __init__(self, ollama: Ollama, health: Health | None = None) -> None:
        self.version = ""
        self.models: tuple[DiskModel, ...] = ()
        self.loaded: tuple[LoadedModel, ...] = ()
        self.problem = "not asked yet"
        self.changed = asyncio.Event()
        self._ollama = ollama
        self._health = health or Health()
        self._tags_at = -TAGS_EVERY_S
        self._shown: dict[tuple[str, str], Shown] = {}  # by name and digest
        self._silent: dict[tuple[str, str], float] = {}  # when those did not say
        self._looking = asyncio.Lock()
        self._hurry = asyncio.Event()

    async def watch(self) -> None:
        while True:
            self._hurry.clear()
            await self._look()
            await _any(self._hurry, timeout=0.5 if self.problem else BEAT_S / 2)

    def answers(self, model: str) -> None:
        """This model does, so it is in memory: if that is news, look now and not when it is due."""
        if self.in_memory(model) is False:
            self._hurry.set()

    async def refresh(self, *, disk: bool = False) -> None:
        """Ask at once, and not only when it is due; `disk`: also what lies on the disk. Heartbeats tell it from then on."""
        if disk:
            self._tags_at = -TAGS_EVERY_S
        await self._look()

    def in_memory(self, model: str) -> bool | None:
        """By its name, or that of a twin of the same manifest (ollama-facts.md §3.6); None while the node does not say."""
        if self.problem:
            return None
        name = canonical_model(model)
        digests = {each.digest for each in self.models if each.digest and canonical_model(each.name) == name}
        return any(canonical_model(each.name) == name or each.digest in digests for each in self.loaded)

    def context_of(self, model: str) -> int:
        return next((each.context_length for each in self.loaded if canonical_model(each.name) == model), 0)

    def only_embeds(self, model: str) -> bool:
        kinds = next((each.capabilities for each in self.models if canonical_model(each.name) == model), ())
        return "embedding" in kinds and "completion" not in kinds

    async def _look(self) -> None:
        async with self._looking:
            before = (self.problem, self.loaded, self.models)
            try:
                await self._ask()
                self.problem = ""
            except NodeAway as error:
                self.problem = str(error)
                self.loaded = ()
                self._tags_at = -TAGS_EVERY_S
            if before != (self.problem, self.loaded, self.models):
                self.changed.set()
                if before[0] != self.problem:
                    log.warning("node.problem", problem=self.problem) if self.problem else log.info("node.reachable")
                    if not self.problem:
                        self._health.came_back(time.monotonic())
            metrics.node_reachable.set(0 if self.problem else 1)

    async def _ask(self) -> None:
        if time.monotonic() - self._tags_at >= TAGS_EVERY_S:
            self.version = await self._ollama.version()
            models = await self._ollama.disk_models()
            await self._show(models)
            self.models = tuple([self._with_shown(model) for model in models if self._was_asked(model)])
            self._tags_at = time.monotonic() if len(self.models) == len(models) else -TAGS_EVERY_S
        self.loaded = await self._ollama.loaded_models()
        self._health.listed({canonical_model(model.name) for model in self.loaded})

    async def _show(self, models: tuple[DiskModel, ...]) -> None:
        """Asks once for each model and digest; after one that does not answer in time, the rest are for the next look."""
        wanted = {(model.name, model.digest) for model in models}
        self._shown = {identity: shown for identity, shown in self._shown.items() if identity in wanted}
        self._silent = {identity: at for identity, at in self._silent.items() if time.monotonic() - at < SILENT_S}
        for identity in sorted(wanted - self._shown.keys() - self._silent.keys()):
            try:
                async with asyncio.timeout(SHOW_S):
                    self._shown[identity] = await self._ollama.shown(identity[0])
            except NodeAway:
                self._silent[identity] = time.monotonic()
            except TimeoutError:
                self._silent[identity] = time.monotonic()
                return

    def _was_asked(self, model: DiskModel) -> bool:
        identity = (model.name, model.digest)
        return identity in self._shown or identity in self._silent

    def _with_shown(self, model: DiskModel) -> DiskModel:
        """Older Ollamas leave capabilities out of /api/tags."""
        shown = self._shown.get((model.name, model.digest))
        if shown is None:
            return model
        capabilities = model.capabilities or shown.capabilities
        return msgspec.structs.replace(model, capabilities=capabilities, prompt_bytes=shown.prompt_bytes)


class Presence:
    def __init__(
        self,
        bus: Bus,
        clock: ServerClock,
        inventory: Inventory,
        health: Health,
        runs: Runs,
        *,
        node: str,
        boot: str,
        vram: int | None = None,
    ) -> None:
        self.replaced = asyncio.Event()
        self._bus = bus
        self._clock = clock
        self._bucket = Bucket(bus, NODES)
        self._inventory = inventory
        self._health = health
        self._runs = runs
        self._node = node
        self._boot = boot
        self._vram = vram
        self._beat = 0
        self._acked_at = time.monotonic()

    async def refuse_company(self) -> str | None:
        """A sentence when another boot of this node is alive; only one worker may speak for a node. Raises Away."""
        try:
            value, _ = await self._bucket.get(self._node)
        except Refused:
            return None  # there is no bucket yet, and so no company; /readyz says what is missing
        if value is None:
            return None
        try:
            other = decode_heartbeat(value)
            answer = await self._bus.request(subjects.worker(self._node, other.boot, "ping"), timeout=1.0)
            pong = decode_pong(answer)
        except (Malformed, NoResponders, Away):
            return None
        return f"another worker (boot {pong.boot}) already serves node {self._node}; give this one another --node name"

    async def watch_namesakes(self) -> Subscription:
        """Whoever wakes up and finds a newer boot of its node stops."""

        def receive(message: Message) -> None:
            try:
                other = decode_heartbeat(message.data)
            except Malformed:
                return
            if other.boot > self._boot and not self.replaced.is_set():
                log.error("node.replaced", newer_boot=other.boot)
                self.replaced.set()

        return await self._bus.subscribe(key_subject(NODES, self._node), receive)

    async def say(self) -> None:
        """One heartbeat, acked. Raises BusError."""
        self._beat += 1
        heartbeat = Heartbeat(
            node=self._node,
            boot=self._boot,
            beat=self._beat,
            changes=self._runs.changes,
            slots=self._runs.slots,
            running=self._runs.describe(),
            models=self._inventory.models,
            loaded=self._inventory.loaded,
            draining=self._runs.draining,
            reachable=not self._inventory.problem and self._health.usable,
            problem=self._inventory.problem or self._health.problem,
            suspect_models=self._health.suspect_models,
            cold_stuck=self._health.cold_stuck,
            vram=self._vram,
            ollama_version=self._inventory.version,
            arriero_version=version("arriero"),
        )
        revision = await self._bucket.put(self._node, encode(heartbeat), ttl_s=RECORD_TTL_S)
        self._acked_at = time.monotonic()
        if self._beat % 30 == 1 and (stored := await self._bus.at(self._bucket.stream, revision)) is not None:
            self._clock.learn(stored.at_ms)

    async def keep_saying(self) -> None:
        self._bus.on_reconnect(self._inventory.changed.set)  # those who wait for a beat have waited long enough
        while True:
            # Before the beat is made: what changes while it is on its way is for the next one, at once.
            self._runs.changed.clear()
            self._inventory.changed.clear()
            try:
                await self.say()
            except BusError as error:
                log.debug("heartbeat.failed", error=str(error))
            await asyncio.sleep(MIN_BEAT_S)
            await _any(self._runs.changed, self._inventory.changed, timeout=BEAT_S - MIN_BEAT_S)

    def cut_off_for(self) -> float:
        """Seconds since NATS last acked a heartbeat."""
        return time.monotonic() - self._acked_at

    def problem(self) -> str | None:
        """For /readyz."""
        if self.cut_off_for() > 3 * BEAT_S:
            return f"no heartbeat acked for {self.cut_off_for():.0f} s"
        problem = self._inventory.problem or ("" if self._health.usable else self._health.problem)
        return f"the node's Ollama: {problem}" if problem else None


async def _any(*events: asyncio.Event, timeout: float) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
