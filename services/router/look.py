"""One look at queue and fleet, at one moment: what is to be bound or loaded now. Pure."""

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from libs.common.contracts.jobs import Decision
from libs.common.contracts.requests import Priority
from services.router import decide, objections
from services.router.backlog import Backlog, backlog
from services.router.decide import Need, Priced
from services.router.fleet import Hold, NodeView, Preload
from services.router.pricing import Ask, Terms
from services.router.queue import Waiting
from services.router.roster import Able

if TYPE_CHECKING:
    from services.router.scheduler import Scheduler

LOOKS_AT = 8  # jobs of one model, for one that does not prefer to wait for the node that has its prompt
COPIES_EVERY_S = 1.0
PAYS_WITHIN_S = 300.0  # what a copy costs now it must bring within so long
SURE = 4.0  # times the price of its load: demand is only guessed, and what moves once moves again
STAYS_S, STAYS_LOADS = 60.0, 3.0  # a model that was just loaded stays: so long, or so many times its load
NEVER_S = 1e5  # harm that nothing pays for


class Placement(NamedTuple):
    """A job and the slot it gets; `hold` is what its node has to reserve."""

    job: Waiting
    node: NodeView
    hold: Hold
    decision: Decision


class Loading(NamedTuple):
    """A copy of a model that is to be loaded before jobs come for it."""

    node: NodeView
    model: str
    order: Preload


class Waits(NamedTuple):
    """Another node will have it done sooner, although it has no slot now."""


WAITS = Waits()


class Look:
    def __init__(self, scheduler: "Scheduler", now: float, now_ms: float, connected_at: float) -> None:
        self._scheduler, self._queue, self._pricing = scheduler, scheduler.queue, scheduler.pricing
        self.now, self._now_ms, self._connected_at = now, now_ms, connected_at
        self.roster = scheduler.roster
        self.roster.refresh(now, connected_at)
        self._held: set[str] = set()
        self._acted = False  # a wish of this look may have been carried out
        self._backlog: Backlog | None = None
        self._best_of: dict[str, list[Priced]] = {}
        self._drains: dict[str, float] = {}

    def next(self) -> Placement | Loading | None:
        if self._acted:
            self.roster.refresh(self.now, self._connected_at)
        self._acted = True
        loading = self._next_copy()
        if loading is not None:
            return loading
        if not self.roster.free:
            return None
        for head in self._queue.heads():
            if head.model not in self._held:
                placement = self._place(head, self._scheduler.asks[head.key])
                if isinstance(placement, Waits):
                    placement = self._place_another(head)
                if placement is not None:
                    self._backlog = None
                    return placement
                self._held.add(head.model)
        return None

    # -- what would be -------------------------------------------------------------------------------------------------

    def waiting(self, model: str) -> int:
        """Jobs that wait for it."""
        return sum(self._queue.waiting(model).values())

    def place(self, job: Waiting, ask: Ask) -> Placement | Waits | None:
        """Where that job would go now."""
        return self._place(job, ask)

    def ranked(self, ask: Ask) -> list[Priced]:
        """All nodes that could run it, with or without a free slot."""
        return decide.rank(ask, self._price(ask, self.able(ask).values()))

    def starts_in(self, ask: Ask, ahead: float) -> float | None:
        """Seconds until the first token of a job that has this share of its model's queue before it; None: no node can run it."""
        able = self.able(ask)
        holders = self.roster.holders(ask.model, ask.priority)
        ranked = self._best_of.get(ask.model)
        if ranked is None:
            ranked = self._best_of[ask.model] = decide.rank(ask, self._price(ask, (holders or able).values()))
        if not ranked:
            return None
        drains = self._drains_in(ask.model, holders)
        terms = ranked[0].terms
        return terms.wait_s + terms.load_s + terms.prefill_s + drains * ahead

    def _drains_in(self, model: str, holders: Able) -> float:
        known = self._drains.get(model)
        if known is None:
            known = self._drains[model] = self._look_at_backlog().drains_in(model, holders)
        return known

    # -- a job ---------------------------------------------------------------------------------------------------------

    def able(self, ask: Ask) -> Able:
        """Nodes that could run it, had they a slot."""
        return self.roster.able(ask.model, ask.priority)[0]

    def _place(self, head: Waiting, ask: Ask) -> Placement | Waits | None:
        holders = self.roster.holders(ask.model, ask.priority)
        free = [node for node in _both(holders, self.roster.free) if objections.full(ask.model, node) is None]
        if free:
            best = decide.rank(ask, self._price(ask, free))
            # A slot that nobody takes is lost: only who is alone, or finds more of its prompt elsewhere, waits for a better one.
            alone = self.waiting(ask.model) <= 1
            if alone or ask.affinity:
                cached = best[0].terms.cached_tokens
                hopeful = holders
                if not alone:
                    names = self._pricing.prefixes.holding_more(holders, ask.model, ask.affinity, cached)
                    hopeful = {name: holders[name] for name in names}
                busy = [n for n in hopeful.values() if n.free_slots <= 0 and ask.model in n.resident]
                waits = [(node, t) for node, t in self._price(ask, busy) if alone or t.cached_tokens > cached]
                if decide.worth_waiting(ask, best[0], waits):
                    return WAITS
            if best[0].node.name not in ask.avoid:
                return self._placement(head, best)
        elif holders and not ask.avoid.issuperset(holders):
            return None
        return self._load(head, ask, holders)

    def _place_another(self, head: Waiting) -> Placement | None:
        """The slot is for the next one who does not prefer to wait for another."""
        for job in self._queue.turns(head.model, LOOKS_AT)[1:]:
            placement = self._place(job, self._scheduler.asks[job.key])
            if isinstance(placement, Placement):
                return placement
        return None

    def _load(self, head: Waiting, ask: Ask, holders: Able) -> Placement | None:
        """No node holds it, or only such that have failed this job."""
        others = [
            node
            for node in _both(self.able(ask), self.roster.free)
            if node.name not in holders and objections.full(ask.model, node) is None
        ]
        waiting = self._look_at_backlog()
        ranked = decide.rank(ask, self._price(ask, others))
        ranked.sort(key=lambda p: (p.node.name in ask.avoid, p.score + waiting.levels.get(p.node.name, 0.0)))
        failed_before = [node for node in holders.values() if objections.full(ask.model, node) is None]
        if (not ranked or ranked[0].node.name in ask.avoid) and failed_before:
            if not ask.avoid.issuperset(holders):
                return None  # one that has not failed it will have a slot again
            return self._placement(head, decide.rank(ask, self._price(ask, failed_before)))
        if not ranked:
            return None
        best = ranked[0]
        need = Need(
            oldest=(self._now_ms - head.created_ms) / 1000,
            waited=self._queue.waited_ms(ask.model, self._now_ms) / 1000,
        )
        level = waiting.levels.get(best.node.name, 0.0)
        queued = sum(self.waiting(model) for model in best.node.resident)
        return self._placement(head, ranked) if decide.pays(need, best, level=level, queued=queued) else None

    def _price(self, ask: Ask, nodes: Iterable[NodeView]) -> list[tuple[NodeView, Terms]]:
        return [
            (node, terms)
            for node in nodes
            if (terms := self._pricing.terms(ask, node, self._harm, self.now)) is not None
        ]

    def _placement(self, job: Waiting, ranked: list[Priced]) -> Placement:
        best, terms = ranked[0], ranked[0].terms
        ready_at = self.now + terms.load_s
        ends_at = ready_at + terms.prefill_s + terms.decode_s
        room = max(0, decide.MAX_CANDIDATES_KEPT - len(ranked))
        refused = list(itertools.islice(self.roster.unfit.items(), room))
        if len(refused) < room:
            priced = {each.node.name for each in ranked}
            others = (item for item in self.roster.fit.items() if item[0] not in priced)
            able, _ = self.roster.able(job.model, job.priority)
            free = self.roster.free
            for name, node in itertools.islice(others, room - len(refused)):
                taken = name in able and name not in free
                refused.append((name, objections.ALL_TAKEN if taken else self._why_not(job, node)))
        waited_ms = max(0, int(self._now_ms - job.created_ms))
        decision = decide.explain(best, ranked[1 : decide.MAX_CANDIDATES_KEPT], refused, waited_ms=waited_ms)
        hold = Hold(job.model, ready_at=ready_at, ends_at=ends_at, evict=terms.evict)
        return Placement(job, best.node, hold, decision)

    def _why_not(self, job: Waiting, node: NodeView) -> str:
        why = self.roster.objection(job.model, node, job.priority) or objections.full(job.model, node)
        return why or "would have to load the model, others hold it"

    # -- copies --------------------------------------------------------------------------------------------------------

    def _next_copy(self) -> Loading | None:
        """The pin that is not in memory, or the copy that saves most waiting for what it costs, if one does."""
        scheduler = self._scheduler
        if self.now < scheduler.copies_at:
            return None
        loading = self._pinned() or self._best_copy()
        if loading is None:
            scheduler.copies_at = self.now + COPIES_EVERY_S
        else:
            scheduler.moved()
        return loading

    def _pinned(self) -> Loading | None:
        for model, policy in sorted(self._pricing.catalog.models.items()):
            for name in sorted(policy.pins):
                node = self.roster.fit.get(name)
                if node is not None and model not in node.loaded and not node.loading:
                    if self.roster.objection(model, node, Priority.BATCH):
                        continue
                    terms = self._pricing.terms(Ask(model, Priority.NORMAL, 0, 0), node, self._harm, self.now)
                    if terms is not None and not node.preload_failed(model, self.now):
                        return Loading(node, model, Preload(self.now + terms.load_s, terms.evict))
        return None

    def _best_copy(self) -> Loading | None:
        looked = self._scheduler.survey(self.now)
        delayed = self._scheduler.delayed
        best: tuple[float, Loading | None] = (0.0, None)
        for model, load in sorted(looked.load.items()):
            holders = looked.holders.get(model)
            most = PAYS_WITHIN_S * looked.most(model)
            if load <= 0 or not holders or most <= best[0]:
                continue
            ask = Ask(model, Priority.NORMAL, 0, 0)
            nodes = self.able(ask).values()
            least = min((self._pricing.load_s(node, model) for node in nodes), default=0.0)
            if most - SURE * least * (1 + delayed) <= best[0]:
                continue
            for node in nodes:
                if node.loading or node.name in holders:
                    continue
                if not node.beat.vram and node.resident:
                    continue  # of a node whose memory is not known, it is not known either what would have to leave
                gain = PAYS_WITHIN_S * looked.gain(model, node.name, 0.0)  # others hold it, so no load is saved
                if gain <= best[0]:
                    continue
                gain -= SURE * self._pricing.load_s(node, model) * (1 + delayed)
                if gain <= best[0] or node.preload_failed(model, self.now):
                    continue
                terms = self._pricing.terms(ask, node, self._harm, self.now)
                if terms is not None and gain - terms.harm_s > best[0]:
                    best = gain - terms.harm_s, Loading(node, model, Preload(self.now + terms.load_s, terms.evict))
        return best[1]

    def _harm(self, model: str, node: str) -> float:
        """Seconds that others lose when this model leaves that node."""
        scheduler, pricing = self._scheduler, self._pricing
        looked = scheduler.survey(self.now)
        view = scheduler.fleet.nodes[node]
        load_s = pricing.load_s(view, model)
        harm = PAYS_WITHIN_S * looked.loss(model, node, load_s)
        stays_s = max(STAYS_S, STAYS_LOADS * load_s)
        if self.now - view.loaded_at.get(model, 0.0) < stays_s and pricing.demand.per_second(model, self.now) > 0:
            harm += NEVER_S
        if len(looked.holders.get(model, ())) <= 1:  # the last copy would soon be loaded again, and push out another
            harm += NEVER_S * pricing.demand.chance(model, self.now, PAYS_WITHIN_S)
        return harm

    def _look_at_backlog(self) -> Backlog:
        if self._backlog is None:
            waiting = self._queue.waiting_by_model()
            holders = {model: nodes.values() for model, nodes in self.roster.held().items() if model in waiting}
            work = {model: self._pricing.work(model) for model in waiting}
            self._backlog = backlog(waiting, work, holders, self.roster.slots)
        return self._backlog


def _both(some: Able, others: Able) -> list[NodeView]:
    """Nodes that are in both; as many steps as the smaller has."""
    if len(others) < len(some):
        some, others = others, some
    return [node for name, node in some.items() if name in others]
