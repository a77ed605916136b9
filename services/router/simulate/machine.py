"""One simulated node: slots, memory, loads, the prompt cache of each slot. Pure: time is a parameter, events are returned.

* A job holds a slot from its start to its end, also while its model is loaded.
* One load at a time; others wait behind it in order. A job for a model that is being loaded, or waits to be, joins it.
* A load needs room. Named victims leave first, then idle models, least recently used first; a model is idle when none of
  its jobs holds a slot. If that is not room enough, the load waits. Jobs of models in memory do not wait for it (as in
  Ollama, whose scheduler lets requests for a loaded model pass).
* A slot remembers, per model, the last conversation it served and how many of its tokens; leaving memory forgets it.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.router.simulate.fleet import ModelSpec, NodeSpec
from services.router.simulate.policy import Job

GB_TOLERANCE = 1e-9  # sizes are sums of decimal fractions


@dataclass(slots=True, eq=False)
class Run:
    """One job on its node. Times are virtual seconds; those that have not come are negative."""

    job: Job
    output_tokens: int
    victims: tuple[str, ...] = ()
    bound_at: float = -1.0
    started_at: float = -1.0  # has a slot
    ready_at: float = -1.0  # its model is in memory
    first_token_at: float = -1.0
    finished_at: float = -1.0
    prefilled_tokens: int = 0
    decode_s: float = 0.0
    slot: int = -1


@dataclass(slots=True, eq=False)
class Load:
    model: str
    size_gb: float
    runs: list[Run]  # wait for it; the first caused it, unless it was ordered without a job
    victims: tuple[str, ...]
    began_at: float = -1.0


@dataclass(slots=True)
class Slot:
    busy: bool = False
    memory: dict[str, tuple[str | None, int, float]] = field(default_factory=dict)  # conversation, tokens, since


class Node:
    """Methods return what has begun: runs whose model is in memory (their first token is due at `first_token_at`), and the
    load, if one began, that is due `size / rate` seconds later."""

    def __init__(self, spec: NodeSpec, models: Mapping[str, ModelSpec]) -> None:
        self.spec = spec
        self.name = spec.name
        self.queue: deque[Run] = deque()  # bound early, wait for a slot
        self.residents: dict[str, float] = {}  # with the moment of their last use
        self.used_gb = 0.0
        self.free_slots = spec.slots
        self.loads_begun = 0
        self._models = models
        self._slots = [Slot() for _ in range(spec.slots)]
        self._holding: dict[str, int] = {}
        self._loads: deque[Load] = deque()

    @property
    def depth(self) -> int:
        return self.spec.slots - self.free_slots + len(self.queue)

    @property
    def free_gb(self) -> float:
        return self.spec.vram_gb - self.used_gb

    @property
    def loading(self) -> str | None:
        return self._loads[0].model if self._loads else None

    def has(self, model: str) -> bool:
        return model in self.residents or any(load.model == model for load in self._loads)

    def running(self, model: str) -> int:
        return self._holding.get(model, 0)

    def load_everything(self) -> None:
        """For a bound: all models lie in memory, however much they take."""
        self.residents = dict.fromkeys(self._models, 0.0)

    def take(self, run: Run, now: float) -> bool:
        """Gives the run a slot, which must be free; True if its model is in memory, so that it has begun."""
        model = run.job.model
        run.started_at = now
        run.slot = self._choose_slot(model, run.job.conversation)
        self._slots[run.slot].busy = True
        self.free_slots -= 1
        self._holding[model] = self._holding.get(model, 0) + 1
        if model in self.residents:
            self._begin(run, now)
            return True
        for load in self._loads:
            if load.model == model:
                load.runs.append(run)
                return False
        self._loads.append(Load(model, self._models[model].size_gb, [run], run.victims))
        return False

    def preload(self, model: str, victims: tuple[str, ...]) -> None:
        """A load without a job; nothing if the model is here, or on its way."""
        if not self.has(model):
            self._loads.append(Load(model, self._models[model].size_gb, [], victims))

    def begin_load(self, now: float) -> Load | None:
        """The next load, if one waits, none runs, and there is room or can be made."""
        if not self._loads or self._loads[0].began_at >= 0:
            return None
        load = self._loads[0]
        leaving = self._room_for(load)
        if leaving is None:
            return None
        for model in leaving:
            del self.residents[model]
            self.used_gb -= self._models[model].size_gb
            for slot in self._slots:
                slot.memory.pop(model, None)
        self.used_gb += load.size_gb
        self.loads_begun += 1
        load.began_at = now
        return load

    def end_load(self, now: float) -> list[Run]:
        """The runs that waited for it; they have begun."""
        load = self._loads.popleft()
        self.residents[load.model] = now
        for run in load.runs:
            self._begin(run, now)
        return load.runs

    def finish(self, run: Run, now: float) -> None:
        model, slot = run.job.model, self._slots[run.slot]
        run.finished_at = now
        slot.busy = False
        slot.memory[model] = (run.job.conversation, run.job.prompt_tokens + run.output_tokens, now)
        self.free_slots += 1
        self._holding[model] -= 1
        self.residents[model] = now

    def _begin(self, run: Run, now: float) -> None:
        job = run.job
        size_gb = self._models[job.model].size_gb
        conversation, tokens, _ = self._slots[run.slot].memory.get(job.model, (None, 0, 0.0))
        cached = 0
        if conversation is not None and conversation == job.conversation:
            cached = max(0, min(tokens, job.prompt_tokens - 1))
        run.ready_at = now
        run.prefilled_tokens = job.prompt_tokens - cached
        run.first_token_at = now + self.spec.prefill_s(run.prefilled_tokens, size_gb)
        run.decode_s = self.spec.decode_s(run.output_tokens, size_gb)

    def _choose_slot(self, model: str, conversation: str | None) -> int:
        """The free one that remembers most of the conversation; else one that remembers nothing, or the oldest memory."""
        best, best_rank = -1, (0, 0.0)
        for number, slot in enumerate(self._slots):
            if slot.busy:
                continue
            known, tokens, since = slot.memory.get(model, (None, 0, -1.0))
            rank = (-tokens, 0.0) if conversation is not None and known == conversation else (0, since)
            if best < 0 or rank < best_rank:
                best, best_rank = number, rank
        return best

    def _room_for(self, load: Load) -> list[str] | None:
        """The models that have to leave; None when not enough can at the moment."""
        missing = load.size_gb - self.free_gb
        leaving: list[str] = []
        for model in load.victims:
            if missing <= GB_TOLERANCE:
                break
            if model in self.residents and model not in leaving:
                if self._holding.get(model):
                    return None
                leaving.append(model)
                missing -= self._models[model].size_gb
        if missing > GB_TOLERANCE:
            for model, _ in sorted(self.residents.items(), key=lambda item: item[1]):
                if not self._holding.get(model) and model not in leaving:
                    leaving.append(model)
                    missing -= self._models[model].size_gb
                    if missing <= GB_TOLERANCE:
                        break
        return leaving if missing <= GB_TOLERANCE else None
