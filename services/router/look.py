"""One look at queue and fleet, at one moment: what is to be bound or loaded now. Pure."""

import itertools
import operator
from collections.abc import Iterable
from typing import NamedTuple

from libs.common.contracts.jobs import Candidate
from libs.common.contracts.requests import Priority
from services.router import decide, objections
from services.router.backlog import Backlog, backlog
from services.router.copies import CopySearch
from services.router.decide import Need, Priced
from services.router.fleet import Hold, NodeView, Preload
from services.router.harm import Harm
from services.router.objections import ALL_TAKEN
from services.router.pricing import Ask, Terms
from services.router.queue import Waiting
from services.router.roster import Able
from services.router.scheduler import Scheduler
from services.router.wishes import PAUSE, Loading, Pause, Placement

LOOKS_AT = 8  # jobs of one model, for one that does not prefer to wait for the node that has its prompt
COPIES_EVERY_S = 1.0
SEARCH_STALE_S = 10.0  # whoever was not active for so long begins anew


class Waits(NamedTuple):
    """Another node will have it done sooner, although it has no slot now."""


WAITS = Waits()


class Look:
    def __init__(self, scheduler: Scheduler, now: float, now_ms: float, connected_at: float) -> None:
        self._scheduler, self._queue, self._pricing = scheduler, scheduler.queue, scheduler.pricing
        self.now, self._now_ms, self._connected_at = now, now_ms, connected_at
        self.roster = scheduler.roster
        self.roster.refresh(now, connected_at)
        self._harm = Harm(scheduler.pricing, self.roster, scheduler.fleet.nodes, lambda: scheduler.survey(now), now)
        if scheduler.search is not None and now - scheduler.search.began_at > SEARCH_STALE_S:
            scheduler.search = None
        self._is_resumed = scheduler.search is not None  # a search that an earlier look put down
        self._held: set[str] = set()
        self._wished: NodeView | None = (
            None  # of the last wish, which may have been carried out; nothing else has changed
        )
        self._backlog: Backlog | None = None
        self._best_of: dict[str, list[Priced]] = {}
        self._drains: dict[str, float] = {}

    def next(self) -> Placement | Loading | None:
        """What is to be done now, however long it takes to find. A placement must be committed, or its job discarded, and a load
        noted with its node (`NodeView.preload`), before the next is asked for."""
        while isinstance(wish := self.step(), Pause):
            pass
        return wish

    def step(self) -> Placement | Loading | Pause | None:
        """The same, but whoever has others to serve may stop after any step: a search for copies goes on with the next, of this
        look or another; there jobs come first."""
        if self._wished is not None:
            self.roster.see(self._wished, self.now, self._connected_at)
            self._harm.forget()
        first = self._next_job() if self._is_resumed else None
        wish = first or self._next_copy() or self._next_job()
        self._wished = None if wish is None or isinstance(wish, Pause) else wish.node
        return wish

    def _next_job(self) -> Placement | None:
        if not self.roster.free:
            return None
        worth = None if self._scheduler.avoiding else self.roster.placeable(self._queue.waiting_by_model())
        for head in self._queue.heads(worth):
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
        holding = self.roster.free_holders(ask.model)
        free = [node for name, node in holding.items() if name in holders and objections.full(ask.model, node) is None]
        if free:
            best = self._rank_free(ask, free)
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

    def _rank_free(self, ask: Ask, free: list[NodeView]) -> list[Priced]:
        """Nodes with a slot that hold the model or load it; as many as are kept."""
        model, pricing = ask.model, self._pricing
        if all(model in node.resident for node in free):
            cached = decide.NOTHING_CACHED
            if ask.affinity:
                names = pricing.prefixes.holding_more([node.name for node in free], model, ask.affinity, 0)
                cached = {name: pricing.cached(ask, name) for name in names}
            return decide.rank_warm(ask, [(node, *pricing.warm(node, model)) for node in free], cached)
        return decide.rank(ask, self._price(ask, free))

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
            if (terms := self._pricing.terms(ask, node, self._harm.of, self.now)) is not None
        ]

    def _placement(self, job: Waiting, ranked: list[Priced]) -> Placement:
        best, terms = ranked[0], ranked[0].terms
        ready_at = self.now + terms.load_s
        ends_at = ready_at + terms.prefill_s + terms.decode_s
        refused = self._refused(job, ranked)
        waited_ms = max(0, int(self._now_ms - job.created_ms))
        decision = decide.explain(best, ranked[1 : decide.MAX_CANDIDATES_KEPT], refused, waited_ms=waited_ms)
        hold = Hold(job.model, ready_at=ready_at, ends_at=ends_at, evict=terms.evict)
        return Placement(job, best.node, hold, decision)

    def _refused(self, job: Waiting, ranked: list[Priced]) -> list[Candidate]:
        """What speaks against the others, by name; as many as there is room for, of all the unfit ones come first."""
        roster, room = self.roster, max(0, decide.MAX_CANDIDATES_KEPT - len(ranked))
        refused = [decide.refused(name, why) for name, why in itertools.islice(roster.unfit.items(), room)]
        if len(refused) < room:
            fit, free, able = roster.fit, roster.free, roster.able(job.model, job.priority)[0]
            priced = {each.node.name for each in ranked}
            names = itertools.islice((name for name in fit if name not in priced), room - len(refused))
            is_mixed = bool(refused)
            refused += [
                decide.refused(name, ALL_TAKEN if name in able and name not in free else self._why_not(job, fit[name]))
                for name in names
            ]
            if is_mixed:
                refused.sort(key=operator.attrgetter("node"))
        return refused

    def _why_not(self, job: Waiting, node: NodeView) -> str:
        why = self.roster.objection(job.model, node, job.priority) or objections.full(job.model, node)
        return why or "would have to load the model, others hold it"

    # -- copies --------------------------------------------------------------------------------------------------------

    def _next_copy(self) -> Loading | Pause | None:
        """The pin that is not in memory, or the copy that saves most waiting for what it costs, if one does."""
        scheduler = self._scheduler
        if scheduler.search is None:
            if self.now < scheduler.copies_at:
                return None
            if pinned := self._pinned():
                scheduler.moved()
                return pinned
            scheduler.search = self._search()
        if not scheduler.search.step():
            return PAUSE
        search, scheduler.search = scheduler.search, None
        found = search.still(self._harm, self.now) if self._is_resumed else search.found
        self._is_resumed = False
        if found is None:
            scheduler.copies_at = self.now + COPIES_EVERY_S
        else:
            scheduler.moved()
        return found

    def _search(self) -> CopySearch:
        scheduler, looked = self._scheduler, self._scheduler.survey(self.now)
        harm = Harm(self._pricing, self.roster, scheduler.fleet.nodes, lambda: looked, self.now)
        return CopySearch(self._pricing, self.roster, harm, looked, delayed=scheduler.delayed, now=self.now)

    def _pinned(self) -> Loading | None:
        for model, policy in sorted(self._pricing.catalog.models.items()):
            for name in sorted(policy.pins):
                node = self.roster.fit.get(name)
                if node is not None and model not in node.loaded and not node.loading:
                    if self.roster.objection(model, node, Priority.BATCH):
                        continue
                    terms = self._pricing.terms(Ask(model, Priority.NORMAL, 0, 0), node, self._harm.of, self.now)
                    if terms is not None and not node.preload_failed(model, self.now):
                        return Loading(node, model, Preload(self.now + terms.load_s, terms.evict))
        return None

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
