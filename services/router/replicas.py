"""On which nodes a model should be in memory, by how often it is asked for: what jobs wait for their slots, with the copies there
are, or were there others. Pure.

The work of each model goes to those of its holders that have least to do (jobs are bound late, so it does). Nodes that are
then equally busy share one queue: a model waits as long as that queue does, and besides for its own holders, as far as work that
nobody else can do keeps them busy (both: Sakasegawa's approximation). It is a sketch, to choose a few copies by; what they would
save is then reckoned with all holders seen together (`congestion`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from services.router import congestion

ROUNDS = 3  # of spreading each model's work over its holders
BUSY = 0.97  # from here on a queue is not in balance: it grows
GROWS_FOR_S = 120.0  # for so long, before the survey is out of date

VARIES = 1.6  # 1 + the squared coefficient of variation of a job's work
COUNTED_S = 600.0  # for so long demand and work are counted, in effect
ALIKE = 0.03  # so little does the business of nodes differ that share their work

Holders = Mapping[str, frozenset[str]]  # nodes by model


def wait_s(work: float, slots: float, busy: float) -> float:
    """Mean wait for a slot: `work` seconds a job, that many slots, busy for that share of the time (more than 1: overloaded)."""
    at = min(busy, BUSY)
    balanced: float = work / slots * at ** ((2 * (slots + 1)) ** 0.5 - 1) / (1 - at)
    return balanced + max(0.0, busy - BUSY) * GROWS_FOR_S


@dataclass(slots=True, frozen=True)
class Survey:
    """`load`: slot-seconds per second that each model is asked for; `work`: seconds of a slot per job."""

    load: Mapping[str, float]
    work: Mapping[str, float]
    slots: Mapping[str, float]  # by node, of a node of middling speed
    holders: Holders
    busy: Mapping[str, float]  # by node
    waits: Mapping[str, float]  # by model that is held and asked for: seconds
    bound: Mapping[str, float]  # by such model: load that only its holders can take, its own included
    pooled: Mapping[str, float]  # by node: seconds that everybody waits who has to go there
    own: Mapping[
        str, tuple[float, float]
    ]  # by such model: the slots of its holders, and the least that `pooled` says of them
    ground: "Ground"

    def waiting(self) -> float:
        """Seconds that are waited per second for all of them; all holders seen together, so far nearer than `waits`."""
        ground, load, work = self.ground, self.load, self.work
        classes = [
            congestion.Class(
                nodes=ground.bits(self.holders[model]),
                load=load[model],
                jobs=load[model] / work[model],
                doubt=VARIES * load[model] * work[model] / COUNTED_S,
            )
            for model in self.waits
        ]
        used = [self.busy[name] * has for name, has in zip(ground.names, ground.slots, strict=True)]
        return congestion.waiting(classes, ground.nodes, used)

    def gain(self, model: str, node: str) -> float:
        """Of one more copy there, for those who wait for it: seconds per second. A guess, `with_holders` knows better."""
        if model not in self.waits:
            return 0.0
        total, pooled = self.own[model]
        total += self.slots[node]
        wait = wait_s(self.work[model], total, self.bound[model] / total) + min(pooled, self.pooled[node])
        return max(0.0, self.load[model] / self.work[model] * (self.waits[model] - wait))

    def most(self, model: str, slots: float, pooled: float) -> float:
        """No further copy can save them more, on any node that has no more slots and whose pool waits no less."""
        wait, (total, own) = self.waits[model], self.own[model]
        total += slots
        rate = self.load[model] / self.work[model]
        least = wait_s(self.work[model], total, self.bound[model] / total) + min(own, pooled)
        return rate * (max(0.0, wait - least) + 1e-9 * wait)  # sums in another order differ in their last digits

    def loss(self, model: str, node: str, load_s: float = 0.0) -> float:
        """Of the copy there, for them."""
        if model not in self.waits:
            return 0.0
        left = self.holders[model] - {node}
        if left:
            total = sum(self.slots[n] for n in sorted(left))
            wait = wait_s(self.work[model], total, self.load[model] / total) + min(self.pooled[n] for n in left)
        else:
            wait = load_s + self.work[model] + self.waits[model]
        return self.load[model] / self.work[model] * max(0.0, wait - self.waits[model])

    def with_holders(self, changed: Holders) -> "Survey":
        """The same, were these models held by these nodes instead."""
        return survey(self.load, self.work, self.slots, {**self.holders, **changed}, self.ground)

    def with_load(self, scale: Mapping[str, float]) -> "Survey":
        """The same, were these models asked for so many times as often."""
        changed = {model: self.load.get(model, 0.0) * by for model, by in scale.items()}
        return survey({**self.load, **changed}, self.work, self.slots, self.holders, self.ground)


class Ground:
    """Nodes by number instead of name, in the order of names: what surveys of the same nodes have in common."""

    def __init__(self, slots: Mapping[str, float]) -> None:
        self.names = sorted(slots)
        self.slots = [slots[name] for name in self.names]
        self._number = {name: n for n, name in enumerate(self.names)}
        self.nodes = congestion.Nodes(self.slots)
        self._numbers: dict[frozenset[str], list[int]] = {}
        self._bits: dict[frozenset[str], int] = {}

    def numbers(self, names: frozenset[str]) -> list[int]:
        known = self._numbers.get(names)
        if known is None:
            known = self._numbers[names] = sorted(map(self._number.__getitem__, names))
        return known

    def bits(self, names: frozenset[str]) -> int:
        known = self._bits.get(names)
        if known is None:
            known = self._bits[names] = sum(1 << n for n in self.numbers(names))
        return known


def survey(
    load: Mapping[str, float],
    work: Mapping[str, float],
    slots: Mapping[str, float],
    holders: Holders,
    ground: Ground | None = None,
) -> Survey:
    """`ground`: of these slots, if it is known already."""
    ground = ground or Ground(slots)
    size, names = ground.slots, ground.names
    used = [0.0] * len(size)
    asked = sorted(
        (m for m, nodes in holders.items() if nodes and load.get(m, 0.0) > 0), key=lambda m: (len(holders[m]), m)
    )
    held = {model: ground.numbers(holders[model]) for model in asked}
    parts: dict[str, list[tuple[int, float]]] = {}
    for _ in range(ROUNDS):
        for model in asked:
            for node, part in parts.get(model, ()):
                left = used[node] - part
                used[node] = left if left > 0.0 else 0.0
            parts[model] = _pour(load[model], held[model], size, used)
            for node, part in parts[model]:
                used[node] += part
    jobs = [0.0] * len(size)
    for model in asked:
        each = work[model]
        for node, part in parts[model]:
            jobs[node] += part / each
    busy = [taken / all_of_it for taken, all_of_it in zip(used, size, strict=True)]
    pooled = _pools(busy, used, jobs, size)
    bound = {m: sum(load[v] for v in asked if holders[v] <= holders[m]) for m in asked}
    own = {m: (sum(size[n] for n in held[m]), min(pooled[n] for n in held[m])) for m in asked}
    waits = {m: wait_s(work[m], total, bound[m] / total) + wait for m, (total, wait) in own.items()}
    return Survey(
        load, work, slots, holders, dict(zip(names, busy, strict=True)), waits, bound,
        dict(zip(names, pooled, strict=True)), own, ground,
    )  # fmt: skip


def _pour(load: float, nodes: list[int], slots: list[float], used: list[float]) -> list[tuple[int, float]]:
    """So much work into those of the nodes that are least busy, so that these are equally busy then."""
    order = sorted([(used[node] / slots[node], node) for node in nodes])
    totals = accumulate([slots[node] for _, node in order])
    held = accumulate([busy * slots[node] for busy, node in order])
    taken, level = 0, 0.0
    for (busy, _), total, filled in zip(order, totals, held, strict=True):
        if taken and level <= busy:
            break
        taken += 1
        level = (filled + load) / total
    return [(node, (level - busy) * slots[node]) for busy, node in order[:taken]]


def _pools(busy: list[float], used: list[float], jobs: list[float], slots: list[float]) -> list[float]:
    """Nodes that are equally busy are one queue: what could go to either went to the one that was less busy."""
    order = sorted((part, node) for node, part in enumerate(busy))
    waits = [0.0] * len(busy)
    pool: list[int] = []
    for n, (part, node) in enumerate(order):
        pool.append(node)
        if n + 1 < len(order) and order[n + 1][0] - part <= ALIKE:
            continue
        total, taken = sum(slots[each] for each in pool), sum(used[each] for each in pool)
        rate = sum(jobs[each] for each in pool)
        wait = wait_s(taken / rate, total, taken / total) if rate > 0 else 0.0
        for each in pool:
            waits[each] = wait
        pool = []
    return waits
