"""On which nodes a model should be in memory, by how often it is asked for: what another copy would save, and what one that
leaves would cost, in seconds of waiting per second. Pure.

Each model is a queue of its own before the slots of all nodes that hold it, as busy as those nodes are on average (jobs are bound
late, so any of them serves the next job); its wait is that of a queue with several servers (Sakasegawa's approximation). It is a
sketch, but one that sees what counts: a model whose holders are busy while other nodes idle.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ROUNDS = 4  # of spreading each model's work over its holders, towards the less busy
BUSY = 0.97  # from here on a queue is not in balance: it grows
GROWS_FOR_S = 120.0  # for so long, before the survey is out of date


def wait_s(work: float, slots: float, busy: float) -> float:
    """Mean wait for a slot: `work` seconds a job, that many slots, busy for that share of the time (more than 1: overloaded)."""
    at = min(busy, BUSY)
    balanced: float = work / slots * at ** ((2 * (slots + 1)) ** 0.5 - 1) / (1 - at)
    return balanced + max(0.0, busy - BUSY) * GROWS_FOR_S


@dataclass(slots=True, frozen=True)
class Survey:
    """`load`: slot-seconds per second that each model is asked for; `work`: seconds of a slot per job; `busy`: by node."""

    load: Mapping[str, float]
    work: Mapping[str, float]
    slots: Mapping[str, float]  # by node, of a node of middling speed
    holders: Mapping[str, frozenset[str]]
    busy: Mapping[str, float]
    share: Mapping[tuple[str, str], float]  # of a model's load, by model and node

    def wait(self, model: str, nodes: Iterable[str], more: float = 0.0) -> float | None:
        """None: nobody holds it. `more`: load that these nodes would have to take on."""
        total, used = 0.0, more
        for node in sorted(nodes):  # sums depend on their order, and ties must not depend on chance
            total += self.slots[node]
            used += self.busy[node] * self.slots[node]
        return wait_s(self.work[model], total, used / total) if total else None

    def gain(self, model: str, node: str, load_s: float) -> float:
        """Of one more copy there; of the first, that not every job has to wait for a load."""
        load = self.load.get(model, 0.0)
        if not load:
            return 0.0
        held = self.holders.get(model, frozenset())
        before = self.wait(model, held)
        if before is None:
            before = load_s + self.work[model]
        after = self.wait(model, held | {node}, 0.0 if held else load)
        assert after is not None
        return max(0.0, load / self.work[model] * (before - after))

    def loss(self, model: str, node: str, load_s: float) -> float:
        """Of the copy there."""
        load = self.load.get(model, 0.0)
        if not load:
            return 0.0
        held = self.holders.get(model, frozenset())
        before = self.wait(model, held) or 0.0
        after = self.wait(model, held - {node}, load * self.share.get((model, node), 0.0))
        if after is None:
            after = before + load_s + self.work[model]
        return max(0.0, load / self.work[model] * (after - before))


def survey(
    load: Mapping[str, float],
    work: Mapping[str, float],
    slots: Mapping[str, float],
    holders: Mapping[str, frozenset[str]],
) -> Survey:
    share: dict[tuple[str, str], float] = {}
    for model, nodes in holders.items():
        total = sum(slots[node] for node in sorted(nodes))
        for node in sorted(nodes):
            share[model, node] = slots[node] / total
    busy = dict.fromkeys(slots, 0.0)
    for turn in range(ROUNDS):
        busy = dict.fromkeys(slots, 0.0)
        for (model, node), part in share.items():
            busy[node] += load.get(model, 0.0) * part / slots[node]
        if turn == ROUNDS - 1:
            break
        for model, nodes in holders.items():
            parts = {node: share[model, node] / (0.05 + busy[node]) for node in sorted(nodes)}
            total_part = sum(parts.values())
            for node, part in parts.items():
                share[model, node] = part / total_part
    return Survey(load, work, slots, holders, busy, share)
