"""What it would cost to run a job on a node, in seconds (peers-and-routing.md §5.3). Pure.

Of a node without a known size of GPU memory nothing is evicted by us: its Ollama decides that alone.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from libs.common.contracts.nodes import canonical_model
from libs.common.contracts.requests import Priority
from services.router import vram
from services.router.catalog import Catalog
from services.router.demand import Demand
from services.router.fleet import NodeView
from services.router.keeping import Keeping
from services.router.prefixes import Prefixes
from services.router.rates import Mean, Rates, Speed

DECODE_COUNTS = {Priority.INTERACTIVE: 0.3, Priority.NORMAL: 0.3, Priority.BATCH: 1.0}  # the first token matters more
WORK_NEWEST = 0.02  # answers differ by far more than the rate at which they come
ON_CPU = 10.0  # how many times slower a layer is that did not fit the GPU


class Ask(NamedTuple):
    """A job as far as its price goes. `model` is canonical; tokens are expected ones."""

    model: str
    priority: Priority
    prompt_tokens: int
    output_tokens: float
    affinity: tuple[str, ...] = ()
    num_ctx: int = 0
    avoid: frozenset[str] = frozenset()  # nodes that have failed this job: any other comes first


class Terms(NamedTuple):
    """Seconds, as predicted, if the job were bound to this node now."""

    wait_s: float  # until its slot is free
    load_s: float  # until its model is in memory
    prefill_s: float
    decode_s: float
    harm_s: float  # to others: reloading what has to leave
    crowd_s: float  # others who will want this node's slots, as often as they have
    cached_tokens: int
    evict: tuple[str, ...]

    @property
    def ttft_s(self) -> float:
        return self.wait_s + self.load_s + self.prefill_s

    def score(self, priority: Priority) -> float:
        return self.ttft_s + DECODE_COUNTS[priority] * self.decode_s + self.harm_s + self.crowd_s


@dataclass(slots=True)
class Pricing:
    rates: Rates = field(default_factory=Rates)
    prefixes: Prefixes = field(default_factory=Prefixes)
    keeping: Keeping = field(default_factory=Keeping)
    demand: Demand = field(default_factory=Demand)
    catalog: Catalog = field(default_factory=Catalog)
    exact_sizes: bool = False  # a model needs what it weighs, and runs only where it fits: the simulator's world
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)  # bytes in memory, at that context
    _work: dict[str, Mean] = field(
        default_factory=dict
    )  # seconds of a slot that a job of this model takes, a moving mean

    def terms(self, ask: Ask, node: NodeView, harm_of: Callable[[str, str], float], now: float) -> Terms | None:
        """None: the model does not fit this node. `harm_of`: seconds that others lose when a model leaves a node."""
        if not ask.affinity and ask.model in node.resident and node.free_slots > 0:  # most of all, so it is short
            prefill_s, decode_s = self.warm(node, ask.model)
            prefill_s, decode_s = max(0, ask.prompt_tokens) * prefill_s, ask.output_tokens * decode_s
            return Terms(0.0, 0.0, prefill_s, decode_s, 0.0, 0.0, 0, ())
        speed = self.speed(node, ask.model)
        cached = 0
        load, harm, crowd = 0.0, 0.0, 0.0
        evict: tuple[str, ...] = ()
        if ask.model in node.resident:
            if ask.affinity:
                cached = self.cached(ask, node.name)
        elif ask.model in node.loading:
            load = max(0.0, node.ready_at(ask.model, now) - now)
        else:
            room = self._room(ask, node, harm_of, now)
            if room is None:
                return None
            evict = room
            last = max((node.busy_with(victim, now, self.work(victim)) for victim in evict), default=now)
            load = speed.load_s + (last - now)
            harm = sum(harm_of(victim, node.name) for victim in evict)
            crowd = self._crowd(node, evict, now)
        return Terms(
            wait_s=0.0 if node.free_slots > 0 else node.frees_at(now, self.work(ask.model)) - now,
            load_s=load,
            prefill_s=max(0, ask.prompt_tokens - cached) * speed.prefill_s,
            decode_s=ask.output_tokens * speed.decode_s,
            harm_s=harm,
            crowd_s=crowd,
            cached_tokens=cached,
            evict=evict,
        )

    def cached(self, ask: Ask, node: str) -> int:
        """Tokens of its prompt that a node may be expected to hold for its model; the last one is always reckoned anew."""
        tokens, since = self.prefixes.found(node, ask.model, ask.affinity)
        return int(min(tokens, max(0, ask.prompt_tokens - 1)) * self.keeping.share(node, since)) if tokens else 0

    def warm(self, node: NodeView, model: str) -> tuple[float, float]:
        """Of `speed`, what counts where the model is in memory: seconds per prompt token and per output token."""
        return self.rates.seen(node.name, model) or self.speed(node, model)[:2]

    def speed(self, node: NodeView, model: str) -> Speed:
        """What was learned of it; else a guess, slower as far as the model does not fit the node's GPU."""
        guess = self.rates.speed(node.name, model, node.sizes.get(model, 0), cpu=node.beat.vram == 0)
        if self.exact_sizes or node.beat.vram == 0 or self.rates.decoded(node.name, model):
            return guess
        slower = 1 + self._spilled(node, model) * (ON_CPU - 1)
        return Speed(guess.prefill_s * slower, guess.decode_s * slower, guess.load_s)

    def _spilled(self, node: NodeView, model: str) -> float:
        """The share of it that runs on the CPU: as the node says, or as it would be."""
        for loaded in node.beat.loaded:
            if canonical_model(loaded.name) == model and loaded.size > 0:
                return max(0.0, 1 - loaded.size_vram / loaded.size)
        needed, capacity = self._need(node, model, 0), node.beat.vram
        return max(0.0, 1 - capacity / needed) if needed and capacity is not None else 0.0

    def load_s(self, node: NodeView, model: str) -> float:
        """`speed` without what only a job needs."""
        return self.rates.load_s(node.name, model, node.sizes.get(model, 0), cpu=node.beat.vram == 0)

    def work(self, model: str) -> float:
        known = self._work.get(model)
        return known.value if known else 5.0

    def has_seen(self, model: str) -> bool:
        """A job of it ended well: what is predicted is more than a guess."""
        return model in self._work

    def worked(self, model: str, seconds: float) -> None:
        """A job of this model took a slot for so long, its load not counted."""
        self._work.setdefault(model, Mean(WORK_NEWEST)).add(seconds)

    def see(self, node: NodeView) -> None:
        """A heartbeat says how large models really are in memory; that is worth more than any estimate."""
        for loaded in node.beat.loaded:
            if loaded.size > 0:
                self._seen[canonical_model(loaded.name)] = (loaded.size, loaded.context_length)

    def _need(self, node: NodeView, model: str, num_ctx: int) -> int:
        size = node.sizes.get(model, 0)
        if self.exact_sizes:
            return size
        context = num_ctx or self.catalog.model(model).num_ctx
        seen, at_context = self._seen.get(model, (0, 0))
        return vram.regrown(seen, size, at_context, context) if seen else vram.need(size, context)

    def _room(
        self, ask: Ask, node: NodeView, harm_of: Callable[[str, str], float], now: float
    ) -> tuple[str, ...] | None:
        """Who leaves for it; None: it cannot be made to fit."""
        capacity = node.beat.vram
        if not capacity:
            return ()  # not known, or no GPU at all: then main memory is the limit, and Ollama's business
        needed = self._need(node, ask.model, ask.num_ctx)
        if self.exact_sizes and needed > capacity:
            return None
        held = {canonical_model(m.name): m.size_vram for m in node.beat.loaded}
        for model in node.loading:
            held.setdefault(model, self._need(node, model, 0))
        for model in node.loaded - node.resident:
            held.pop(model, None)  # on its way out
        removable = [m for m in held if m in node.resident and not self.catalog.pinned(m, node.name)]
        price = {m: harm_of(m, node.name) + node.busy_with(m, now, self.work(m)) - now for m in removable}
        return vram.victims(min(needed, capacity), capacity, held, removable, price.__getitem__)

    def _crowd(self, node: NodeView, evict: Iterable[str], now: float) -> float:
        """How long a job waits here, were arrivals as they have been: so that models spread before queues show it."""
        busy = sum(
            self.demand.per_second(model, now) * self.work(model)
            for model in sorted((node.resident | node.loading).difference(evict))
        ) / max(1, node.beat.slots)
        busy = min(busy, 0.9)
        return busy / (1 - busy) * 1.0
