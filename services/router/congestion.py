"""How many jobs wait, on average, when each may only go to some of the nodes. Pure.

Jobs are bound late, first come first served, to slots of nodes that hold their model. Seen as an order-independent queue
(Krzesinski 2011; Bonald & Comte 2017) its stationary state is known exactly: the states in which just the models of the set S
wait have together the weight

    weight(S) = sum over m in S of load(m) weight(S - m) / (slots(nodes that hold any of S) - load(S))

There are as many sets as subsets, so models that matter least are counted as if they were others with nearly the same holders,
until MOST classes are left. In that queue a job would be served by all free slots at once; that it takes one is corrected for by
the chance that those slots are all taken (Sakasegawa's approximation). What is only guessed of a load takes the edge off queues
that seem nearly full: no copy is loaded for what chance may have counted.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

MOST = 8
LEAST = 4  # so many of those with the least load are looked at, to be counted as another
FULL = 0.97  # from here on a queue is not in balance: it grows
GROWS_FOR_S = 120.0  # for so long, before the survey is out of date


class Class(NamedTuple):
    """Models held by the same nodes: `nodes` is a set of bits, `load` slots that are busy with them, `jobs` per second."""

    nodes: int
    load: float
    jobs: float
    doubt: float = 0.0  # variance of what is known of `load`


class Nodes:
    """`slots` of each node, and what sets of nodes (bits) have together: the same few sets are asked for again and again."""

    def __init__(self, slots: Sequence[float]) -> None:
        self.slots = slots
        self._of: dict[int, float] = {}

    def of(self, nodes: int) -> float:
        known = self._of.get(nodes)
        if known is None:
            known, left = 0.0, nodes
            while left:
                bit = left & -left
                known += self.slots[bit.bit_length() - 1]
                left ^= bit
            self._of[nodes] = known
        return known


def waiting(classes: Sequence[Class], nodes: Nodes, used: Sequence[float]) -> float:
    """Jobs that wait, on average, when so many slots of each node are `used`."""
    classes = _fewer(classes, nodes)
    total_jobs = sum(each.jobs for each in classes)
    if not total_jobs:
        return 0.0
    work = sum(each.load for each in classes) / total_jobs
    loads, jobs = [each.load for each in classes], [each.jobs * work for each in classes]
    sets = 1 << len(classes)
    load, job, doubt = [0.0] * sets, [0.0] * sets, [0.0] * sets
    weight, queued = [1.0] * sets, [0.0] * sets
    held = [sum(1 << c for c, one in enumerate(classes) if one.nodes >> n & 1) for n in range(len(used))]
    room, busy = _of_any(held, nodes.slots, sets), _of_any(held, used, sets)
    total, expected, grows = 1.0, 0.0, 0.0
    for these, parts in enumerate(_parts(len(classes))):
        if not parts:
            continue
        rest, n = parts[0]
        load[these], job[these] = load[rest] + loads[n], job[rest] + jobs[n]
        doubt[these] = doubt[rest] + classes[n].doubt
        has = room[these]
        all_taken = min(1.0, busy[these] / has) ** ((2 * (has + 1)) ** 0.5 - 1)
        spare, least = has - load[these], (1 - FULL) * has
        if spare < least:
            grows = max(grows, least - spare)
        spare = max(least, (spare + (spare * spare + 4 * doubt[these]) ** 0.5) / 2)
        came, more = 0.0, 0.0
        for without, n in parts:
            came += loads[n] * weight[without]
            more += loads[n] * queued[without] + jobs[n] * weight[without]
        here = weight[these] = came / spare
        here_queued = queued[these] = (more + job[these] * here) / spare
        total += here
        expected += all_taken * here_queued
    return expected / total + grows * GROWS_FOR_S / work


def _of_any(held: Sequence[int], each_node: Sequence[float], sets: int) -> list[float]:
    """For each set of classes: the sum over the nodes that hold any of it."""
    within = [0.0] * sets  # of nodes that hold none but these
    for these, value in zip(held, each_node, strict=True):
        within[these] += value
    for c in range(sets.bit_length() - 1):
        bit = 1 << c
        for these in range(sets):
            if these & bit:
                within[these] += within[these ^ bit]
    return [within[-1] - within[sets - 1 - these] for these in range(sets)]


def _fewer(classes: Sequence[Class], nodes: Nodes) -> list[Class]:
    """Those with the same nodes as one, then those that matter least as if they were held as another one is."""
    alike: dict[int, Class] = {}
    for each in classes:
        known = alike.get(each.nodes)
        alike[each.nodes] = each if known is None else _both(known, each)
    found = sorted(alike.values(), key=lambda each: (each.load, each.nodes))
    while len(found) > MOST:
        # Nothing is lost where a class has little load, and few slots are in one set of nodes and not in the other.
        _, n, m = min(
            (less.load * nodes.of(less.nodes ^ more.nodes), n, m)
            for n, less in enumerate(found[:LEAST])
            for m, more in enumerate(found)
            if m > n
        )
        found[m] = _both(found[m], found[n])
        del found[n]
        found.sort(key=lambda each: (each.load, each.nodes))
    return found


def _both(one: Class, other: Class) -> Class:
    return Class(one.nodes, one.load + other.load, one.jobs + other.jobs, one.doubt + other.doubt)


@functools.cache
def _parts(count: int) -> list[list[tuple[int, int]]]:
    """For each set of so many: each set with one less, and which."""
    return [[(these ^ 1 << n, n) for n in range(count) if these >> n & 1] for these in range(1 << count)]
