"""Which models of the node are stuck, and when to look at them again. Pure: time is a parameter.

A model that fell silent closes the whole node to new work until it answers a question of the worker's own; but when another
model answers meanwhile, only that one is closed. A load that never came closes the node to cold work alone: the models in
memory go on serving (ollama-facts.md §3.4). Busy is not stuck: nothing here ever hears of a 503.

Where clients leave before a silence has become long enough, their silences add up to a doubt (patience.py). A doubt closes
nothing: the worker asks its own question, with the whole patience, and only the silence after that one counts.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.worker.patience import Stage

AGAIN_S, AGAIN_AT_MOST_S = (
    15.0,
    300.0,
)  # between two looks at a model; the first comes at once: it may be what heals (§3.4)

DOUBTED = 0.25  # of a run's patience: the silences of runs that were cut short, with no output of the model in between
MAX_DOUBTS = 64  # models; the oldest doubt goes

_WHAT = {
    Stage.LOAD: "a load of {} never came",
    Stage.RENDER: "{} did not say how it renders a prompt",
    Stage.FIRST: "{} fell silent before its first token",
    Stage.ANSWER: "{} fell silent in the middle of an answer",
}


class Probe(NamedTuple):
    """Ask this model for one token. `options`: those that decide whether Ollama loads it anew (§3.5)."""

    model: str
    options: Mapping[str, Any]
    bystander: bool = False  # not the one that is stuck: does it still answer?


@dataclass(slots=True)
class Stuck:
    """A model that was given up. `knows`: what was in memory then, for a load that never came."""

    model: str
    stage: Stage
    options: Mapping[str, Any]
    next_at: float
    wait: float = field(default_factory=lambda: AGAIN_S)
    others_answer: bool = False
    knows: frozenset[str] = frozenset()


@dataclass(slots=True)
class Doubt:
    """A model whose last runs ended in silence, before that was long enough. `share`: of their patience, together."""

    model: str
    stage: Stage
    options: Mapping[str, Any]
    share: float = 0.0


@dataclass(slots=True)
class Flight:
    """A run that is at the node. `prompt_tokens`: still to be read."""

    model: str
    prompt_tokens: int


@dataclass
class Health:
    on_change: Callable[[], None] = lambda: None
    _silent: dict[str, Stuck] = field(default_factory=dict)
    _load: Stuck | None = None
    _doubts: dict[str, Doubt] = field(default_factory=dict)  # oldest first
    _flights: dict[object, Flight] = field(default_factory=dict)
    _bystanders: list[str] = field(default_factory=list)  # to be asked next
    _loaded: frozenset[str] = frozenset()

    # -- runs ----------------------------------------------------------------------------------------------------------

    def began(self, run: object, model: str, prompt_tokens: int) -> None:
        self._flights[run] = Flight(model, prompt_tokens)

    def heard(self, run: object, *, was_cold: bool) -> None:
        """The run has got a part of its answer."""
        flight = self._flights[run]
        flight.prompt_tokens = 0
        self._doubts.pop(flight.model, None)
        if self._silent or self._load:
            self._answered(flight.model, was_cold=was_cold)

    def ended(self, run: object) -> None:
        self._flights.pop(run, None)

    def others(self, run: object) -> list[int]:
        """Of each other run the tokens of its prompt that may still have to be read."""
        return [flight.prompt_tokens for key, flight in self._flights.items() if key is not run]

    def cut_short(self, model: str, stage: Stage, options: Mapping[str, Any], share: float) -> None:
        """A run ended in a silence of the node, by its deadline or a cancel. `share`: see `patience.doubt`."""
        if share > 0:
            known = self._doubts.pop(model, None)
            self._doubts[model] = Doubt(model, stage, options, share + (known.share if known else 0.0))
            if len(self._doubts) > MAX_DOUBTS:
                del self._doubts[next(iter(self._doubts))]

    def gave_up(self, model: str, stage: Stage, options: Mapping[str, Any], now: float) -> None:
        """A run was silent for too long."""
        self._doubts.pop(model, None)
        if stage is Stage.LOAD:
            if self._load is None:
                self._load = Stuck(model, stage, options, now, knows=self._loaded)
        else:
            known = self._silent.setdefault(model, Stuck(model, stage, options, now))
            known.stage, known.options = stage, options
            for each in self._silent.values():
                each.others_answer = False  # that was before
        self.on_change()

    # -- what the node says of itself ----------------------------------------------------------------------------------

    def listed(self, models: Collection[str]) -> None:
        """What is in memory, by /api/ps. A model that was not there before: loads come again."""
        self._loaded = frozenset(models)
        if self._load is None:
            return
        if self._loaded - self._load.knows:
            self._load = None
            self.on_change()
        else:
            self._load.knows &= self._loaded  # whatever leaves and comes back was loaded

    def came_back(self, now: float) -> None:
        """The whole Ollama was away, perhaps it was restarted: look at once."""
        self._doubts.clear()
        for each in self._stuck():
            each.next_at, each.wait = now, AGAIN_S

    # -- probes --------------------------------------------------------------------------------------------------------

    def due(self, now: float) -> Probe | None:
        """What to ask now. Never a stuck model that a run is at: the run itself will show. A doubted one all the same: its runs
        end before they show anything."""
        busy = {flight.model for flight in self._flights.values()}
        while self._bystanders:
            model = self._bystanders.pop()
            if model in self._loaded and model not in self._silent and model not in busy and not self.usable:
                return Probe(model, {}, bystander=True)
        for each in sorted(self._stuck(), key=lambda stuck: stuck.next_at):
            if each.next_at <= now and each.model not in busy:
                return Probe(each.model, each.options)
        for doubt in self._doubts.values():
            if doubt.share >= DOUBTED and not self._is_stuck(doubt.model):
                return Probe(doubt.model, doubt.options)
        return None

    def is_wanted(self, probe: Probe) -> bool:
        """False when the answer has come from elsewhere meanwhile."""
        if probe.bystander:
            return not self.usable
        return self._is_stuck(probe.model) or probe.model in self._doubts

    def probed(self, probe: Probe, *, answered: bool | None, now: float) -> None:
        """`answered`: None when the silence was not waited for, or was none: the node was busy, or broke the stream."""
        doubt = self._doubts.pop(probe.model, None)
        if answered:
            self._answered(probe.model, was_cold=self._load is not None and self._load.model == probe.model)
            return
        if probe.bystander:
            return
        if doubt is not None and answered is False and not self._is_stuck(probe.model):
            self.gave_up(doubt.model, doubt.stage, doubt.options, now)
        for each in self._stuck():
            if each.model == probe.model:
                each.next_at = now + each.wait
                each.wait = min(each.wait * 2, AGAIN_AT_MOST_S)
        if not self.usable:
            self._bystanders = sorted(self._loaded - self._silent.keys())

    # -- what comes of it ----------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """May the node have new work at all?"""
        return all(each.others_answer for each in self._silent.values())

    @property
    def suspect_models(self) -> tuple[str, ...]:
        return tuple(sorted(self._silent))

    @property
    def cold_stuck(self) -> bool:
        return self._load is not None

    @property
    def problem(self) -> str:
        """For people; empty when there is none."""
        return "; ".join(_WHAT[each.stage].format(each.model) for each in self._stuck())

    def _stuck(self) -> list[Stuck]:
        return [*self._silent.values(), *([self._load] if self._load else [])]

    def _is_stuck(self, model: str) -> bool:
        return any(each.model == model for each in self._stuck())

    def _answered(self, model: str, *, was_cold: bool) -> None:
        before = (self.suspect_models, self.usable, self.cold_stuck)
        self._silent.pop(model, None)
        for each in self._silent.values():
            each.others_answer = True
        if self._load and (was_cold or model == self._load.model):
            self._load = None
        if before != (self.suspect_models, self.usable, self.cold_stuck):
            self.on_change()
