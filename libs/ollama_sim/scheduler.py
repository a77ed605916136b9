"""Who may use which model when: a fast path for what is loaded, one serial loader for everything else.

While the loader loads, or waits for a busy victim, no other cold model can start; loaded models keep serving. The
bound of the queue is therefore felt only by requests that need a load.
"""

import asyncio
import time

from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.counters import Counters
from libs.ollama_sim.durations import FOREVER
from libs.ollama_sim.fault_book import FaultBook
from libs.ollama_sim.faults import FaultKind, Phase
from libs.ollama_sim.memory import must_evict, needed_bytes, place, predicted_bytes, prefix_limit
from libs.ollama_sim.models import Model
from libs.ollama_sim.options import RunnerOptions
from libs.ollama_sim.pace import Pace
from libs.ollama_sim.runner import Runner, RunnerState
from libs.ollama_sim.scheduling import choose_victim, effective_ctx, gpu_limit, needs_reload


class ServerBusy(Exception):
    """The queue of cold requests is full."""


class LoadFailed(Exception):
    """The text is the engine's."""


class Ticket:
    """A request that needs the loader; abandoned ones keep their place in the queue until their turn comes."""

    def __init__(self, model: Model, options: RunnerOptions, keep_alive_s: float | None, route: str) -> None:
        self.model = model
        self.options = options
        self.keep_alive_s = keep_alive_s
        self.route = route
        self.placed: asyncio.Future[Runner] = asyncio.get_running_loop().create_future()
        self.abandoned = asyncio.Event()


class Scheduler:
    """Owns all runners. `run` must be running for anything cold to be loaded or anything warm to be unloaded."""

    def __init__(self, config: NodeConfig, pace: Pace, faults: FaultBook, counters: Counters) -> None:
        self._config = config
        self._pace = pace
        self._faults = faults
        self._counters = counters
        self._pending: asyncio.Queue[Ticket] = asyncio.Queue(maxsize=max(1, config.max_queue))
        self._unloads: asyncio.TaskGroup | None = None
        self.runners: dict[str, Runner] = {}  # by blob
        self.placing: Ticket | None = None

    @property
    def queued(self) -> int:
        return self._pending.qsize()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as unloads:
                self._unloads = unloads
                while True:
                    self.placing = await self._pending.get()
                    await self._place(self.placing)
                    self.placing = None
        finally:
            for runner in self.runners.values():
                if runner.expiry is not None:
                    runner.expiry.cancel()

    async def acquire(self, model: Model, options: RunnerOptions, keep_alive_s: float | None, route: str) -> Runner:
        """A runner to use until `release`; waits for a load if it must."""
        runner = self.runners.get(model.blob_id)
        if runner is not None and self._is_usable(runner, options):
            runner.begin_use(keep_alive_s)
            return runner
        ticket = Ticket(model, options, keep_alive_s, route)
        try:
            self._pending.put_nowait(ticket)
        except asyncio.QueueFull:
            raise ServerBusy from None
        try:
            return await ticket.placed
        except asyncio.CancelledError:
            ticket.abandoned.set()
            if ticket.placed.done() and not ticket.placed.cancelled() and ticket.placed.exception() is None:
                self.release(ticket.placed.result())
            raise

    def release(self, runner: Runner) -> None:
        """One user less; the last one starts the clock of keep_alive, or the unload."""
        runner.users -= 1
        if runner.users > 0:
            return
        runner.expires_ns = self.expiry_ns(runner.keep_alive_s)
        if runner.keep_alive_s == 0 or runner.is_doomed:
            self._begin_unload(runner)
        elif not runner.never_expires and runner.state is RunnerState.READY:
            seconds = self._pace.real_lifetime(runner.keep_alive_s)
            runner.expiry = asyncio.get_running_loop().call_later(seconds, self._expire, runner)

    def unload(self, model: Model) -> None:
        """Ask for an unload; it happens when the last user has left."""
        runner = self.runners.get(model.blob_id)
        if runner is None:
            return
        runner.keep_alive_s = 0.0
        if runner.users == 0:
            self._begin_unload(runner)

    def expiry_ns(self, keep_alive_s: float) -> int:
        """The real moment at which a model that is idle from now on goes; for ever is what a Go duration can hold."""
        longest = 2**63 - 1
        if keep_alive_s == FOREVER:
            return time.time_ns() + longest
        return time.time_ns() + min(longest, int(self._pace.real_lifetime(keep_alive_s) * 1e9))

    def _is_usable(self, runner: Runner, options: RunnerOptions) -> bool:
        if runner.state is not RunnerState.READY or runner.is_dead:
            return False
        return not needs_reload(runner.options, options, runner.model, self._config.num_ctx)

    async def _place(self, ticket: Ticket) -> None:
        while not ticket.abandoned.is_set():
            runner = self.runners.get(ticket.model.blob_id)
            if runner is not None and self._is_usable(runner, ticket.options):
                self._hand_out(runner, ticket)
                return
            if runner is None and not self._must_evict(ticket):
                await self._load(ticket)
                return
            victim = (
                runner or self.runners[choose_victim([each.as_resident() for each in self.runners.values()]).blob_id]
            )
            await self._evict(victim)

    def _must_evict(self, ticket: Ticket) -> bool:
        config, model = self._config, ticket.model
        predicted = predicted_bytes(model, self._ctx_of(ticket), self._slots_of(model))
        vram = 0 if gpu_limit(model, ticket.options) < 1 else config.vram  # who says what goes where is not checked
        return must_evict(len(self.runners), config.runner_limit, predicted, self._vram_used, vram)

    @property
    def _vram_used(self) -> int:
        return sum(runner.placement.vram_bytes for runner in self.runners.values())

    def _memory_needed(self, ticket: Ticket) -> int:
        slots = self._slots_of(ticket.model)
        return needed_bytes(ticket.model, self._ctx_of(ticket), slots, self._config.kv_cache_type)

    def _ctx_of(self, ticket: Ticket) -> int:
        return effective_ctx(ticket.model, ticket.options, self._config.num_ctx)

    def _slots_of(self, model: Model) -> int:
        return 1 if model.can_embed else self._config.slots

    async def _evict(self, victim: Runner) -> None:
        """Wait until the victim is gone; a request with a keep_alive may revive it meanwhile (bug 17408)."""
        self._counters.evictions += 1
        victim.keep_alive_s = 0.0
        victim.is_doomed = victim.is_dead or not self._config.has_bug_17408
        if victim.users == 0:
            self._begin_unload(victim)
        await victim.gone.wait()

    async def _load(self, ticket: Ticket) -> None:
        fault = self._faults.draw(Phase.LOAD, ticket.route, ticket.model.name.short)
        kind = fault.kind if fault is not None else None
        seconds = self._config.load_s(ticket.model)
        if fault is not None and kind is FaultKind.SLOW_LOAD:
            seconds += fault.seconds
        if await self._is_abandoned_within(ticket, None if kind is FaultKind.STUCK_LOAD else seconds):
            self._counters.aborted_loads += 1
            return
        if kind is FaultKind.LOAD_OOM:
            self._counters.failed_loads += 1
            needed = self._memory_needed(ticket) // 2**20
            text = f"llama-server reported out-of-memory during startup: failed to allocate buffer of {needed} MiB"
            if not ticket.placed.done():
                ticket.placed.set_exception(LoadFailed(text))
            return
        runner = self._new_runner(ticket)
        self.runners[ticket.model.blob_id] = runner
        self._counters.loads += 1
        self._hand_out(runner, ticket)
        if runner.users == 0:  # the client left in the last moment; the model stays for its keep_alive
            runner.begin_use(ticket.keep_alive_s)
            self.release(runner)

    async def _is_abandoned_within(self, ticket: Ticket, seconds: float | None) -> bool:
        """Let the load take its time, and stop it when its client goes away."""
        try:
            async with asyncio.timeout(None if seconds is None else self._pace.real(seconds)):
                await ticket.abandoned.wait()
        except TimeoutError:
            return ticket.abandoned.is_set()
        return True

    def _new_runner(self, ticket: Ticket) -> Runner:
        config, model = self._config, ticket.model
        share = gpu_limit(model, ticket.options)
        placement = place(self._memory_needed(ticket), self._vram_used, config.vram, largest_share=share)
        return Runner(
            model,
            ticket.options,
            num_ctx=self._ctx_of(ticket),
            slots=self._slots_of(model),
            placement=placement,
            rates=config.rates_of(model, placement.gpu_share),
            keep_alive_s=config.default_keep_alive_s,
            prefix_limit=prefix_limit(model, config.cache_mib, config.kv_cache_type),
            now=self._pace.now,
        )

    def _hand_out(self, runner: Runner, ticket: Ticket) -> None:
        if not ticket.placed.done():
            runner.begin_use(ticket.keep_alive_s)
            ticket.placed.set_result(runner)

    def _expire(self, runner: Runner) -> None:
        if runner.users == 0 and runner.state is RunnerState.READY:
            self._counters.expirations += 1
            self._begin_unload(runner)

    def _begin_unload(self, runner: Runner) -> None:
        if runner.state is RunnerState.READY and self._unloads is not None:
            runner.state = RunnerState.UNLOADING
            if runner.expiry is not None:
                runner.expiry.cancel()
            self._unloads.create_task(self._unload(runner), name=f"unload {runner.model.name.short}")

    async def _unload(self, runner: Runner) -> None:
        await self._pace.sleep(0 if runner.is_dead else self._config.unload_s)
        self.runners.pop(runner.model.blob_id, None)
        runner.gone.set()
