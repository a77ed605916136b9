"""The rules to compare with: what usual proxies do, and a bound.

The early ones bind at the arrival, to a node whose memory is large enough; there jobs wait in the order of their arrival.
Ties go to the node that was given a job longest ago, then to the first of the fleet file.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from random import Random

from services.router.simulate.fleet import ModelSpec
from services.router.simulate.policy import Binding, Job, NodeView, Policy


class Early(Policy):
    """Binds at the arrival. Subclasses choose."""

    def __init__(self, nodes: Sequence[NodeView], models: Mapping[str, ModelSpec], chance: Random) -> None:
        self._fitting = {
            name: [n for n, node in enumerate(nodes) if model.size_gb <= node.spec.vram_gb]
            for name, model in models.items()
        }
        self.nodes = nodes
        self.chance = chance
        self.given = [0] * len(nodes)  # when each was last given a job: a count, not a time
        self._count = 0

    def choose(self, model: str, fitting: Sequence[int]) -> int:
        """One of `fitting`: indices of nodes, never none."""
        raise NotImplementedError

    def arrived(self, job: Job, now: float) -> Iterable[Binding]:
        chosen = self.choose(job.model, self._fitting[job.model])
        self._count += 1
        self.given[chosen] = self._count
        return (Binding(job.id, self.nodes[chosen].name),)


class LoadedThenDepth(Early):
    def choose(self, model: str, fitting: Sequence[int]) -> int:
        nodes = self.nodes
        return min(fitting, key=lambda n: (not nodes[n].has(model), nodes[n].depth, self.given[n], n))


class LeastDepth(Early):
    def choose(self, model: str, fitting: Sequence[int]) -> int:
        return min(fitting, key=lambda n: (self.nodes[n].depth, self.given[n], n))


class RoundRobin(Early):
    """In turn, over the nodes that are large enough."""

    def choose(self, model: str, fitting: Sequence[int]) -> int:
        return min(fitting, key=lambda n: (self.given[n], n))


class AtRandom(Early):
    def choose(self, model: str, fitting: Sequence[int]) -> int:
        return self.chance.choice(fitting)


class Oracle(Policy):
    """A bound on the whole: every model in the memory of every node, one queue, first come first served, and of the idle
    slots that of the fastest node."""

    everything_loaded = True

    def __init__(self, nodes: Sequence[NodeView], models: Mapping[str, ModelSpec], chance: Random) -> None:
        self._fastest = sorted(nodes, key=lambda node: (-node.spec.decode_tps, -node.spec.prefill_tps))
        self._waiting: deque[Job] = deque()

    def arrived(self, job: Job, now: float) -> Iterable[Binding]:
        self._waiting.append(job)
        return ()

    def changed(self, now: float) -> Iterable[Binding]:
        while self._waiting:
            idle = next((node for node in self._fastest if node.free_slots), None)
            if idle is None:
                return
            yield Binding(self._waiting.popleft().id, idle.name)
