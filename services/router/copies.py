"""Which further copy of a model is worth its load, by surveys of the fleet as it would be then (ADR 14). Pure.

In a large fleet that takes a while, so the search goes in steps, and may be put down between them. Its moment is that of its
beginning; what has changed by its end is looked at again before anything comes of it.
"""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from libs.common.contracts.requests import Priority
from services.router.fleet import NodeView, Preload
from services.router.harm import KEPT_S, PAYS_WITHIN_S, Harm
from services.router.pricing import Ask, Pricing, Terms
from services.router.replicas import Survey
from services.router.roster import Roster
from services.router.wishes import Loading

SURE = 4.0  # times the price of its load: demand is only guessed, and what moves once moves again
EXACT = 4  # candidates that are surveyed as if they were there; each costs a few surveys
MARGIN = 0.1  # so far may demand be off: a copy has to pay although it is less, and what leaves is asked for more
PRICES_A_STEP = 50
NOBODY: frozenset[str] = frozenset()


Hope = tuple[float, str, str, NodeView]  # what it promises before it is priced, less than nothing; model, name, node


class Candidate(NamedTuple):
    promise: float  # seconds of waiting that it seems to save, beyond what it costs
    model: str
    node: NodeView
    terms: Terms


class CopySearch:
    """`delayed`: jobs for each slot that wait behind a load."""

    def __init__(
        self, pricing: Pricing, roster: Roster, harm: Harm, looked: Survey, *, delayed: float, now: float
    ) -> None:
        self._pricing, self._roster, self._harm, self._looked, self._now = pricing, roster, harm, looked, now
        self.began_at = now
        self._dear = SURE * (1 + delayed)  # what a second of loading has to bring
        self._best: tuple[float, Loading | None] = (0.0, None)
        self._nodes: dict[str, list[NodeView]] = {}
        self._doubted: dict[tuple[tuple[str, float], ...], Survey] = {}
        self._steps = self._search()

    def step(self) -> bool:
        """A few milliseconds of it. True: done."""
        return next(self._steps, True) is True

    @property
    def found(self) -> Loading | None:
        """When it is done: of the copies that seem to save most waiting, the one that does."""
        return self._best[1]

    def still(self, harm: Harm, now: float) -> Loading | None:
        """What was found, if it is as possible and as harmless at this later moment."""
        found = self.found
        if found is None:
            return None
        node, model = found.node, found.model
        able, _ = self._roster.able(model, Priority.NORMAL)
        if able.get(node.name) is not node or node.loading or model in node.resident:
            return None
        terms = self._pricing.terms(_ask(model), node, harm.of, now)
        if terms is None or terms.evict != found.order.evict or node.preload_failed(model, now):
            return None
        if terms.harm_s >= KEPT_S or any(harm.is_last(victim, node) for victim in terms.evict):
            return None
        return Loading(node, model, Preload(now + terms.load_s, terms.evict))

    def _search(self) -> Iterator[bool]:
        hopes: list[Hope] = []
        for model in self._hopeful():
            hopes += self._hopes(model)
            yield False
        heapq.heapify(hopes)  # few of many are looked at
        found: list[Candidate] = []
        while hopes:
            less, model, _, node = heapq.heappop(hopes)
            if len(found) == EXACT and -less <= found[-1].promise:
                break
            if (candidate := self._priced(-less, model, node)) is not None:
                found.append(candidate)
                found.sort(key=lambda each: (-each.promise, each.model, each.node.name))
                del found[EXACT:]
            if len(hopes) % PRICES_A_STEP == 0:
                yield False
        for candidate in found:
            yield False
            yield from self._try(candidate)

    def _nodes_for(self, model: str) -> list[NodeView]:
        """Those of which the survey knows: it may be a second old."""
        known = self._nodes.get(model)
        if known is None:
            able, _ = self._roster.able(model, Priority.NORMAL)
            known = self._nodes[model] = [node for name, node in able.items() if name in self._looked.slots]
        return known

    def _hopeful(self) -> list[str]:
        """Models of which a copy might pay somewhere."""
        looked = self._looked
        slots, pooled = max(looked.slots.values(), default=0.0), min(looked.pooled.values(), default=0.0)
        found = []
        for model in looked.waits:
            most = PAYS_WITHIN_S * looked.most(model, slots, pooled)
            if any(self._dear * self._pricing.load_s(node, model) < most for node in self._nodes_for(model)):
                found.append(model)
        return found

    def _hopes(self, model: str) -> Iterator[Hope]:
        looked, now = self._looked, self._now
        for node in self._nodes_for(model):
            if node.loading or node.name in looked.holders[model] or node.preload_failed(model, now):
                continue
            if not node.beat.vram and node.resident:
                continue  # of a node whose memory is not known, it is not known either what would have to leave
            hope = PAYS_WITHIN_S * looked.gain(model, node.name) - self._dear * self._pricing.load_s(node, model)
            if hope > 0:
                yield -hope, model, node.name, node

    def _priced(self, hope: float, model: str, node: NodeView) -> Candidate | None:
        looked = self._looked
        terms = self._pricing.terms(_ask(model), node, self._harm.of, self._now)
        if terms is None or terms.harm_s >= KEPT_S:
            return None
        harm = sum(looked.loss(v, node.name) for v in terms.evict if not self._harm.is_last(v, node))
        drain = terms.load_s - self._pricing.load_s(node, model)
        return Candidate(hope - PAYS_WITHIN_S * harm - self._dear * drain, model, node, terms)

    def _try(self, candidate: Candidate) -> Iterator[bool]:
        """Survey the fleet with it, and keep it if it is the best so far."""
        _, model, node, terms = candidate
        held_by = self._looked.holders.get
        changed: dict[str, frozenset[str]] = {model: held_by(model, NOBODY) | {node.name}}
        leave = [(victim, node.name) for victim in terms.evict]
        first: Loading | None = Loading(node, model, Preload(self._now + terms.load_s, terms.evict))
        price = self._dear * terms.load_s
        taken = {node.name}
        for victim in (v for v in terms.evict if self._harm.is_last(v, node)):
            if held_by(victim, NOBODY) - {node.name}:
                first = None if len(taken) == 1 else first  # it is being loaded elsewhere: wait for that
                continue
            other = self._elsewhere(victim, taken, model)
            if other is None:
                return
            if len(taken) == 1:
                first = other
            taken.add(other.node.name)
            price += self._dear * self._pricing.load_s(other.node, victim)
            leave += [(v, other.node.name) for v in other.order.evict]
            changed[victim] = held_by(victim, NOBODY) | {other.node.name}
            yield False
        for victim, name in leave:
            changed[victim] = changed.get(victim, held_by(victim, NOBODY)) - {name}
        scale = {victim: 1 + MARGIN for victim, _ in leave} | {model: 1 - MARGIN}
        doubted = self._doubted.get(key := tuple(sorted(scale.items())))
        if doubted is None:
            doubted = self._doubted[key] = self._looked.with_load(scale)
            yield False
        waits = doubted.waiting()
        yield False
        worth = PAYS_WITHIN_S * (waits - doubted.with_holders(changed).waiting()) - price
        if worth > self._best[0]:
            self._best = worth, first

    def _elsewhere(self, model: str, taken: set[str], wanted: str) -> Loading | None:
        """Where the last copy of a model could go, if another one needs its place."""
        ask, now, harm = _ask(model), self._now, self._harm
        best: tuple[float, Loading | None] = (KEPT_S, None)
        for node in self._nodes_for(model):
            if node.name in taken or node.loading or model in node.resident or node.preload_failed(model, now):
                continue
            terms = self._pricing.terms(ask, node, harm.of, now)
            if terms is None or wanted in terms.evict or any(harm.is_last(v, node) for v in terms.evict):
                continue
            if terms.load_s + terms.harm_s < best[0]:
                best = terms.load_s + terms.harm_s, Loading(node, model, Preload(now + terms.load_s, terms.evict))
        return best[1]


def _ask(model: str) -> Ask:
    return Ask(model, Priority.NORMAL, 0, 0)
