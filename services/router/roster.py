"""Which nodes take work at all, which of them could run a model, who holds it and who has a free slot. Pure.

Every look asks all that, and little of it changes between two: it is kept, and only nodes that have changed are looked at again.
Tables are in the order of names, as far as anything depends on it: verdicts must not depend on who came first.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from libs.common.contracts.nodes import DEAD_S, SUSPECT_S
from libs.common.contracts.requests import Priority
from services.router import objections
from services.router.catalog import Catalog
from services.router.fleet import NodeView

Able = Mapping[str, NodeView]  # by name

_NOBODY: Able = {}
_NOTHING: frozenset[str] = frozenset()


class Roster:
    def __init__(self, nodes: Mapping[str, NodeView], catalog: Catalog) -> None:
        self._nodes, self._catalog = nodes, catalog
        self.fit: dict[str, NodeView] = {}
        self.unfit: dict[str, str] = {}  # why
        self.free: dict[str, NodeView] = {}  # fit ones that have a slot
        self.slots = 0  # of the fit ones
        self._held: dict[str, dict[str, NodeView]] = {}  # fit nodes that have a model in memory or load it, by model
        self._held_by: dict[str, frozenset[str]] = {}
        self._free_held: dict[str, dict[str, NodeView]] = {}  # those of `_held` that have a slot
        self._free_held_by: dict[str, frozenset[str]] = {}
        self._covered: dict[str, bool] = {}
        self._able: dict[tuple[str, Priority], tuple[Able, frozenset[str]]] = {}
        self._able_holders: dict[tuple[str, Priority], Able] = {}
        self._judged: dict[str, tuple[object, ...]] = {}  # what `_judge` depends on besides the time, by node
        self._abilities: dict[str, tuple[object, ...]] = {}  # what `able` depends on, by node
        self._seen: dict[str, int] = {}  # stamps, by node
        self._newest = 0  # stamp that the last `refresh` saw: whoever has changed since has a greater one
        self._since: tuple[int, float, float] = (-1, 0.0, 0.0)  # catalog, connected_at, now of the last full look
        self._until = -math.inf  # then time alone changes something

    def refresh(self, now: float, connected_at: float) -> None:
        newest = self._newest
        changed = [node for node in self._nodes.values() if node.stamp > newest]
        catalog, connected, before = self._since
        if catalog != self._catalog.version or len(self._nodes) != len(self._seen):
            self._start_anew()
        elif connected == connected_at and before <= now < self._until:
            for node in changed:
                self.see(node, now, connected_at)
                self._newest = max(self._newest, node.stamp)
            return
        self._until = math.inf
        self._judged.clear()
        for node in self._nodes.values():
            self._see(node, now, connected_at)
            self._newest = max(self._newest, node.stamp)
        self._since = (self._catalog.version, connected_at, now)

    def see(self, node: NodeView, now: float, connected_at: float) -> None:
        """Instead of `refresh`, at the moment of the last one, when nothing but this node has changed since."""
        if self._seen[node.name] != node.stamp:
            self._see(node, now, connected_at)

    def able(self, model: str, priority: Priority) -> tuple[Able, frozenset[str]]:
        """Fit nodes that could run it, had they a slot; and why others could not."""
        known = self._able.get((model, priority))
        if known is None:
            found, reasons = {}, set()
            for node in self.fit.values():
                why = self.objection(model, node, priority)
                if why is None:
                    found[node.name] = node
                else:
                    reasons.add(why)
            known = self._able[model, priority] = found, frozenset(reasons)
        return known

    def holders(self, model: str, priority: Priority) -> Able:
        """Those of `able` that have it in memory or load it."""
        known = self._able_holders.get((model, priority))
        if known is None:
            able, _ = self.able(model, priority)
            known = {name: node for name, node in self._held.get(model, {}).items() if name in able}
            self._able_holders[model, priority] = known
        return known

    def holding(self, model: str) -> Able:
        """Fit nodes that have it in memory or load it, in any order."""
        return self._held.get(model, _NOBODY)

    def free_holders(self, model: str) -> Able:
        """Fit nodes that have it in memory or load it, and have a slot; able to run it or not."""
        return self._free_held.get(model, _NOBODY)

    def placeable(self, models: Iterable[str]) -> list[str]:
        """Those of these models of which a job may get a slot. Of any other each job that no node has failed yet has to wait for
        a slot of a node that holds it."""
        free, covered = self._free_held, self._covered
        return [
            model
            for model in models
            if free.get(model) or not (covered[model] if model in covered else self._is_covered(model))
        ]

    def held(self) -> Mapping[str, Mapping[str, NodeView]]:
        """Fit nodes by what they have in memory or load; models in the order in which nodes bring them."""
        found = [(next(iter(nodes)), model) for model, nodes in self._held.items() if nodes]
        return {model: self._held[model] for _, model in sorted(found)}

    def objection(self, model: str, node: NodeView, priority: Priority) -> str | None:
        size = node.sizes.get(model, 0)
        return objections.unable(model, node, self._catalog, priority=priority, size=size)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _is_covered(self, model: str) -> bool:
        """Jobs of every class have a node that holds it, with or without a slot."""
        covered = self._covered[model] = all(self.holders(model, priority) for priority in Priority)
        return covered

    def _start_anew(self) -> None:
        tables = (self.fit, self.unfit, self.free, self._held, self._held_by, self._free_held, self._free_held_by)
        for table in (*tables, self._able, self._able_holders, self._covered, self._abilities, self._seen):
            table.clear()
        self.slots = 0

    def _see(self, node: NodeView, now: float, connected_at: float) -> None:
        name = node.name
        self._seen[name] = node.stamp
        health = (id(node), node.heard_at, node.set_aside_until, node.gone, node.beat)
        if health != self._judged.get(name):  # else only what runs there or is loaded has changed
            self._judged[name] = health
            self._judge(node, now, connected_at)
        is_fit = name in self.fit
        is_free = is_fit and node.free_slots > 0
        if is_free:
            self.free[name] = node
        else:
            self.free.pop(name, None)
        held = node.resident | node.loading if node.loading else node.resident
        self._hold(node, held if is_fit else _NOTHING, is_free=is_free)

    def _judge(self, node: NodeView, now: float, connected_at: float) -> None:
        """Does it take work, and which?"""
        name = node.name
        why = objections.unfit(node, self._catalog, now=now, connected_at=connected_at)
        self._until = min(self._until, _changes_at(node, now, connected_at))
        beat = node.beat
        ability = (
            why is None, node.disk, node.suspect, node.loaded if beat.cold_stuck else None, beat.vram, beat.slots, id(node)
        )  # fmt: skip
        if ability != self._abilities.get(name):
            self._abilities[name] = ability
            for table in (self._able, self._able_holders, self._covered):
                table.clear()
            self.fit.pop(name, None)
            self._hold(node, _NOTHING, is_free=False)
            if why is None:
                self.fit[name] = node
                _sort(self.fit)
            self.slots = sum(each.beat.slots for each in self.fit.values())
        if why is None:
            self.unfit.pop(name, None)
        elif name in self.unfit:
            self.unfit[name] = why
        else:
            self.unfit[name] = why
            _sort(self.unfit)

    def _hold(self, node: NodeView, models: frozenset[str], *, is_free: bool) -> None:
        if (more := _enter(node, models, self._held, self._held_by)) is not None:
            for model in more:
                _sort(self._held[model])
            self._able_holders.clear()
            self._covered.clear()
        _enter(node, models if is_free else _NOTHING, self._free_held, self._free_held_by)


def _enter(
    node: NodeView, models: frozenset[str], table: dict[str, dict[str, NodeView]], entered: dict[str, frozenset[str]]
) -> frozenset[str] | None:
    """Put it down under these models and no others, and say which are more than before; None: it stood so already."""
    before = entered.get(node.name, _NOTHING)
    if models == before:
        return None
    entered[node.name] = models
    for model in before - models:
        del table[model][node.name]
    more = models - before
    for model in more:
        table.setdefault(model, {})[node.name] = node
    return more


def _sort(table: dict[str, Any]) -> None:
    """In place, by name."""
    names = list(table)
    if len(names) > 1 and names[-1] < names[-2]:  # only the last one came later
        ordered = sorted(table.items())
        table.clear()
        table.update(ordered)


def _changes_at(node: NodeView, now: float, connected_at: float) -> float:
    """When time alone makes it fit or unfit, or changes why."""
    heard = max(node.heard_at, connected_at)
    # Asked as `liveness` asks: where rounding differs the moment has passed already, and the next look is a full one.
    moments = [heard + limit for limit in (SUSPECT_S, DEAD_S) if now - heard < limit]
    if node.set_aside_until > now:
        moments.append(node.set_aside_until)
    return min(moments, default=math.inf)
