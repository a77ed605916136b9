"""On which nodes a model should be in memory, by how often it is asked for: what another copy would save, and what one that
leaves would cost, in seconds of waiting per second. Pure.

Each model is a queue of its own before the slots of all nodes that hold it, as busy as those nodes are on average (jobs are bound
late, so any of them serves the next job); its wait is that of a queue with several servers (Sakasegawa's approximation). It is a
sketch, but one that sees what counts: a model whose holders are busy while other nodes idle.
"""

from collections.abc import Mapping
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
    sums: Mapping[str, tuple[float, float]]  # by model: slots of all its holders, and how many of them are busy
    most_slots: float  # of any node
    least_busy: float

    def wait(self, model: str, more: float = 0.0) -> float | None:
        """None: nobody holds it. `more`: load that its holders would have to take on."""
        total, used = self.sums.get(model, (0.0, 0.0))
        return wait_s(self.work[model], total, (used + more) / total) if total else None

    def gain(self, model: str, node: str, load_s: float) -> float:
        """Of one more copy there; of the first, that not every job has to wait for a load."""
        load = self.load.get(model, 0.0)
        if not load:
            return 0.0
        work = self.work[model]
        total, used = self.sums.get(model, (0.0, 0.0))
        before = wait_s(work, total, used / total) if total else load_s + work
        if not total:
            used = load
        slots = self.slots[node]
        total += slots
        after = wait_s(work, total, (used + self.busy[node] * slots) / total)
        return max(0.0, load / work * (before - after))

    def most(self, model: str) -> float:
        """No further copy saves more than this, wherever it is: as if the largest node were the least busy one."""
        load = self.load.get(model, 0.0)
        total, used = self.sums.get(model, (0.0, 0.0))
        if not load or not total:
            return 0.0
        work, slots = self.work[model], self.most_slots
        busy = min(used, (used + self.least_busy * slots) / (total + slots) * total) / total
        return load / work * (wait_s(work, total, used / total) - wait_s(work, total + slots, busy))

    def loss(self, model: str, node: str, load_s: float) -> float:
        """Of the copy there."""
        load = self.load.get(model, 0.0)
        if not load:
            return 0.0
        work = self.work[model]
        before = self.wait(model) or 0.0
        total, used = self.sums.get(model, (0.0, 0.0))
        held = self.holders.get(model, frozenset())
        if held - {node}:
            slots = self.slots[node] if node in held else 0.0
            used += load * self.share.get((model, node), 0.0) - (self.busy[node] * slots if slots else 0.0)
            after = wait_s(work, total - slots, used / (total - slots))
        else:
            after = before + load_s + work
        return max(0.0, load / work * (after - before))


def survey(
    load: Mapping[str, float],
    work: Mapping[str, float],
    slots: Mapping[str, float],
    holders: Mapping[str, frozenset[str]],
) -> Survey:
    parts_of: dict[str, dict[str, float]] = {}
    for model, nodes in holders.items():
        total = sum(
            slots[node] for node in sorted(nodes)
        )  # sums depend on their order, and ties must not depend on chance
        parts_of[model] = {node: slots[node] / total for node in sorted(nodes)}
    busy = dict.fromkeys(slots, 0.0)
    for turn in range(ROUNDS):
        busy = dict.fromkeys(slots, 0.0)
        for model, parts in parts_of.items():
            if asked := load.get(model, 0.0):
                for node, part in parts.items():
                    busy[node] += asked * part / slots[node]
        if turn == ROUNDS - 1:
            break
        for model, parts in parts_of.items():
            weighed = {node: part / (0.05 + busy[node]) for node, part in parts.items()}
            total = sum(weighed.values())
            parts_of[model] = {node: part / total for node, part in weighed.items()}
    share = {(model, node): part for model, parts in parts_of.items() for node, part in parts.items()}
    used = {node: busy[node] * slots[node] for node in slots}
    sums = {m: (sum(slots[n] for n in parts), sum(used[n] for n in parts)) for m, parts in parts_of.items()}
    most_slots, least_busy = max(slots.values(), default=1.0), min(busy.values(), default=0.0)
    return Survey(load, work, slots, holders, busy, share, sums, most_slots, least_busy)
