"""How long a run may be silent before its node counts as stuck. Pure: time is a parameter.

Ollama sends nothing at all before the first token (ollama-facts.md §2.5), and a wedged engine sends nothing for ever while all
else on the node looks fine (§3.4). So the only sign is a silence longer than what the node may be doing can take.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

# Policy, each from a measured or documented time, generous because a false alarm costs a load elsewhere:
LOAD_S = 600.0  # Ollama gives up a load that makes no progress for 300 s by itself; as long again for a queue before it
FIRST_S = 120.0  # tokenizing, a slow template, an engine that was paged out; warm, it is 1 to 4 ms (§5.1)
PREFILL_TPS = 20.0  # tokens a second that the slowest CPU worth using reads of a prompt
NEIGHBOUR_S = (
    30.0  # for each other run: slots share the engine's batches (74 tokens a second alone, 38 beside another, §5.1)
)
ANSWER_S = 60.0  # a neighbour's prefill stops a stream for one batch: 3.3 s measured (§5.1); 1024 tokens at 20 a second are 51 s
QUIET_ANSWER_S = 300.0  # a native tool call is silent while it is generated (§1.3)
RENDER_S = 30.0  # 10 to 40 ms measured, and it waits for no slot (§1.13)

# What a silence says that was cut short by a deadline or a cancel, see `doubt`:
TELLING_S = 5.0  # a shorter one says nothing: people change their minds, and a neighbour's batch takes 3.3 s (§5.1)
LOAD_SHARE = 0.5  # of LOAD_S that is Ollama's own limit for a load without progress


class Stage(StrEnum):
    LOAD = "load"  # the model is not in memory, as far as is known
    RENDER = "render"  # asked how the prompt is rendered, before an answer is continued
    FIRST = "first"  # the model is in memory: prefill
    ANSWER = "answer"


class Expected(NamedTuple):
    """What is known of a request before it is sent. `quiet`: tools or a format, whose text may come late and at once."""

    prompt_tokens: int = 0
    quiet: bool = False
    renders: bool = False


def limit_s(stage: Stage, expected: Expected, others: Collection[int] = ()) -> float:
    """`others`: of each other run on the node the tokens of its prompt that may still have to be read."""
    match stage:
        case Stage.LOAD:
            return LOAD_S
        case Stage.RENDER:
            return RENDER_S
        case Stage.FIRST:
            return FIRST_S + (expected.prompt_tokens + sum(others)) / PREFILL_TPS + NEIGHBOUR_S * len(others)
        case Stage.ANSWER:
            return QUIET_ANSWER_S if expected.quiet else ANSWER_S


def doubt(stage: Stage, silent_s: float, limit: float) -> float:
    """How much a silence that was cut short before its limit speaks against the node: a share of the limit, to be added up.

    Not so while a model is loaded: leaving aborts a load (ollama-facts.md §2.6), the next one begins anew, so many short ones
    are no long one; only what is long by itself counts, and then for all.
    """
    if silent_s < TELLING_S:
        return 0.0
    share = silent_s / limit
    if stage is Stage.LOAD:
        return 1.0 if share >= LOAD_SHARE else 0.0
    return share


@dataclass(slots=True)
class Patience:
    """With one run. Tell it what happens; `left` says how much is left. Times are monotonic seconds."""

    expected: Expected
    since: float  # the silence in this stage began
    scale: float = 1.0
    stage: Stage = Stage.LOAD
    was_cold: bool = False  # the model was missing from memory at some time
    _loading_since: float | None = None
    _rendered: bool = False

    def look(self, now: float, *, in_memory: bool | None) -> None:
        """`in_memory`: as /api/ps says; None when it says nothing. A model that vanishes is loaded anew, with other options
        perhaps; all the loading of one run shares one limit, so that coming and going does not renew it for ever."""
        if self.stage is Stage.ANSWER or in_memory is None:
            return
        if not in_memory:
            self.was_cold = True
            if self._loading_since is None:
                self._loading_since = now if self.stage is not Stage.LOAD else self.since
            self.stage, self.since = Stage.LOAD, self._loading_since
        elif self.stage is Stage.LOAD:
            self.stage = Stage.RENDER if self.expected.renders and not self._rendered else Stage.FIRST
            self.since = now

    def rendered(self, now: float) -> None:
        self._rendered = True
        if self.stage is Stage.RENDER:
            self.stage, self.since = Stage.FIRST, now

    def heard(self, now: float) -> None:
        """A part of the answer."""
        self.stage, self.since = Stage.ANSWER, now

    def forgive(self, seconds: float) -> None:
        """It was not the node that was late: this process was stopped, or its machine slept."""
        self.since += seconds
        if self._loading_since is not None:
            self._loading_since += seconds

    def left(self, now: float, others: Collection[int] = ()) -> float:
        return self.since + self.limit(others) - now

    def doubt(self, now: float, others: Collection[int] = ()) -> float:
        """See `doubt`; if the run ends now."""
        return doubt(self.stage, now - self.since, self.limit(others))

    def limit(self, others: Collection[int] = ()) -> float:
        return self.scale * limit_s(self.stage, self.expected, others)
