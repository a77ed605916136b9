"""What a policy is told and what it may do.

A policy never sees how many tokens an unfinished job will give, nor what is about to arrive. It sees the nodes as a router
does (what is in memory, which slots are taken), and the durations that Ollama would report.

Bindings may come from a generator: each is made, and shows in the nodes, before the next is asked for. Two kinds of policy:

* early binding: every job is bound in `arrived`, to a node that may be busy; it waits there, first come first served;
* late binding: jobs are kept back, and bound in `arrived` or `changed` to a node that has a free slot.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import NamedTuple, Protocol, TypeAlias

from libs.common.contracts.requests import Priority
from services.router.simulate.fleet import ModelSpec, NodeSpec


class Job(NamedTuple):
    """What is known of a job when it arrives."""

    id: int  # unique in a run, growing with the arrival
    arrived_at: float
    model: str
    prompt_tokens: int
    client: str
    priority: Priority
    conversation: str | None


class Binding(NamedTuple):
    """`victims` may leave the node's memory for this job's model, in this order; behind them, idle models by age."""

    job: int
    node: str
    victims: tuple[str, ...] = ()


class Preload(NamedTuple):
    """A model is loaded without a job: no slot is taken for it. `victims` as in `Binding`."""

    node: str
    model: str
    victims: tuple[str, ...] = ()


class Observed(NamedTuple):
    """What is known of a job when it has ended. Seconds and tokens, as Ollama's final chunk has them."""

    load_s: float  # from its slot to its model in memory: 0 when it was there
    prefilled_tokens: int  # of the prompt, without what the slot still held
    prefill_s: float
    output_tokens: int
    decode_s: float


class NodeView(Protocol):
    """A node now. Not to be changed by a policy."""

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> NodeSpec:
        """Its rates, too: for the oracle. A policy that claims to be realistic learns them."""
        ...

    @property
    def depth(self) -> int:
        """Jobs bound here and not finished."""
        ...

    @property
    def free_slots(self) -> int: ...
    @property
    def free_gb(self) -> float:
        """Memory that neither a resident model nor the one being loaded takes."""
        ...

    @property
    def residents(self) -> Mapping[str, float]:
        """Models in memory, each with the moment it was loaded or, later, a job of it ended."""
        ...

    @property
    def loading(self) -> str | None:
        """The model that is being loaded, or waits for room in memory; others may wait behind it."""
        ...

    def has(self, model: str) -> bool:
        """In memory, being loaded, or waiting to be."""
        ...

    def running(self, model: str) -> int:
        """Jobs of this model that hold a slot here, also those that wait for its load."""
        ...


class Policy(Protocol):
    """Subclass it and override what is needed."""

    everything_loaded: bool = False  # a bound, not a policy: all models lie in the memory of all nodes

    def arrived(self, job: Job, now: float) -> Iterable[Binding]:
        return ()

    def changed(self, now: float) -> Iterable[Binding | Preload]:
        """After each arrival, each load that ended, each job that ended, and at `wake_at`."""
        return ()

    def wake_at(self, now: float) -> float | None:
        """Asked after `changed`: when to be called again at the latest, if nothing happens before. Must lie after `now`."""
        return None

    def started(self, job: Job, node: str, now: float) -> None:
        """It holds a slot."""

    def loaded(self, model: str, node: str, now: float, seconds: float) -> None:
        """The model is in memory; `seconds`: the load alone, without waits."""

    def first_token(self, job: Job, node: str, now: float, prefill_s: float, prefilled_tokens: int) -> None: ...

    def finished(self, job: Job, node: str, now: float, observed: Observed) -> None:
        """The slot is free."""


Factory: TypeAlias = Callable[[Sequence[NodeView], Mapping[str, ModelSpec], Random], Policy]
"""Makes the policy of one run: nodes in the order of the fleet file, models by name, and its own chance, seeded."""
