"""How fast each node is with each model: learned from what Ollama reports when a job ends (ollama-facts.md §5.1). Pure.

What was not seen yet is guessed from what was: another model on the same node, scaled by its size; another node; a prior.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

REFERENCE_BYTES = 4.5e9  # a 7B model at Q4: what priors are stated for
NEWEST = 0.2  # weight of a new figure among many older ones
ENOUGH_TOKENS = 8  # a prefill or an answer shorter than this says little about a rate
MAX_PAIRS = 20_000


class Speed(NamedTuple):
    """Seconds: per uncached prompt token, per output token, and for a load from nothing."""

    prefill_s: float
    decode_s: float
    load_s: float


GPU_PRIOR = Speed(1 / 1500, 1 / 50, 4.5)
CPU_PRIOR = Speed(1 / 60, 1 / 6, 4.5)


@dataclass(slots=True)
class Mean:
    """Of the first figures all alike, then the newer the heavier."""

    newest: float = NEWEST
    value: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(1 / self.count, self.newest)


@dataclass(slots=True)
class Seen:
    prefill_s: Mean = field(default_factory=Mean)
    decode_s: Mean = field(default_factory=Mean)
    load_s: Mean = field(default_factory=Mean)


class Rates:
    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], Seen] = {}  # by (node, model)
        self._nodes: dict[str, Seen] = {}  # per reference size
        self._fleet = Seen()
        self._answers: dict[str, Mean] = {}  # output tokens by model
        self._answers_to: dict[tuple[str, str], Mean] = {}  # by (client, model)
        self._firm: dict[tuple[str, str], tuple[float, float]] = {}  # pairs whose prefill and decode have been seen
        self._known: dict[tuple[str, str], Speed] = {}  # what `speed` has said since the last news

    def learn(
        self,
        node: str,
        model: str,
        size: int,
        *,
        new_tokens: float = 0,
        prefill_s: float = 0.0,
        output_tokens: int = 0,
        decode_s: float = 0.0,
        load_s: float = 0.0,
    ) -> None:
        """From one job: figures that are 0, or too small to say something, are left out. `size` in bytes, 0 if not known."""
        figures = (
            ("prefill_s", prefill_s / new_tokens if prefill_s > 0 and new_tokens >= ENOUGH_TOKENS else 0.0),
            ("decode_s", decode_s / output_tokens if decode_s > 0 and output_tokens >= ENOUGH_TOKENS else 0.0),
            ("load_s", load_s),
        )
        if len(self._pairs) > MAX_PAIRS:
            self._pairs.clear()
            self._firm.clear()
        pair = self._pairs.setdefault((node, model), Seen())
        scale = REFERENCE_BYTES / size if size > 0 else 1.0
        for name, value in figures:
            if value > 0:
                getattr(pair, name).add(value)
                getattr(self._nodes.setdefault(node, Seen()), name).add(value * scale)
                getattr(self._fleet, name).add(value * scale)
        if pair.prefill_s.count and pair.decode_s.count:
            self._firm[node, model] = pair.prefill_s.value, pair.decode_s.value
        self._known.clear()

    def learn_answer(self, client: str, model: str, output_tokens: int) -> None:
        if len(self._answers_to) > MAX_PAIRS:
            self._answers_to.clear()
        self._answers.setdefault(model, Mean()).add(output_tokens)
        self._answers_to.setdefault((client, model), Mean()).add(output_tokens)

    def answer_tokens(self, client: str, model: str, limit: int, prior: float = 200.0) -> float:
        """How many tokens an answer is expected to have; `limit` is what the request allows, 0: it says nothing."""
        mean = self._answers_to.get((client, model)) or self._answers.get(model)
        expected = max(1.0, mean.value) if mean else prior
        return min(expected, limit) if limit > 0 else expected

    def speed(self, node: str, model: str, size: int, *, cpu: bool = False) -> Speed:
        """`size` in bytes, 0 if not known; `cpu`: the node has no GPU, which decides what is guessed while nothing was seen."""
        known = self._known.get((node, model))
        if known is None:
            known = self._known[node, model] = self._guess(node, model, size, cpu)
        return known

    def load_s(self, node: str, model: str, size: int, *, cpu: bool = False) -> float:
        """Of `speed`. Asked of all nodes at once, when hardly anything of it has changed since."""
        pair = self._pairs.get((node, model))
        if pair is not None and pair.load_s.count:
            return pair.load_s.value
        return self.speed(node, model, size, cpu=cpu).load_s

    def seen(self, node: str, model: str) -> tuple[float, float] | None:
        """Prefill and decode as in `speed`, if both have been seen there, so that nothing is guessed."""
        return self._firm.get((node, model))

    def decoded(self, node: str, model: str) -> bool:
        """Has that node decoded for that model yet?"""
        pair = self._pairs.get((node, model))
        return pair is not None and pair.decode_s.count > 0

    def pace(self, node: str) -> float:
        """How fast it decodes, against the mean of the fleet: 2 is twice as fast."""
        seen = self._nodes.get(node)
        if seen is None or not seen.decode_s.count:
            return 1.0
        return self._fleet.decode_s.value / seen.decode_s.value

    def _guess(self, node: str, model: str, size: int, cpu: bool) -> Speed:
        scale = size / REFERENCE_BYTES if size > 0 else 1.0
        pair, whole = self._pairs.get((node, model)), self._nodes.get(node)
        values = []
        for name, prior in (CPU_PRIOR if cpu else GPU_PRIOR)._asdict().items():
            known = [(pair, 1.0), (whole, scale), (None if cpu else self._fleet, scale)]
            means = [(getattr(seen, name), by) for seen, by in known if seen is not None]
            values.append(next((mean.value * by for mean, by in means if mean.count), prior * scale))
        return Speed(*values)
