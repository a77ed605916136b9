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
PAYS_WITHIN_S = 1000.0  # what a copy costs now it must bring within so long
SURE = 4.0  # times the price of its load: demand is only guessed, and what moves once moves again
STAYS_S, STAYS_LOADS = 60.0, 3.0  # a model that was just loaded stays: so long, or so many times its load
NEVER_S = 1e5  # harm that nothing pays for
KEPT_S = 1e7  # harm for which no copy is even looked at
EXACT = 4  # candidates that are surveyed as if they were there; each costs a few surveys
MARGIN = 0.1  # so far may demand be off: a copy has to pay although it is less, and what leaves is asked for more


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
        self._wished: NodeView | None = (
            None  # of the last wish, which may have been carried out; nothing else has changed
        )
        self._backlog: Backlog | None = None
        self._best_of: dict[str, list[Priced]] = {}
        self._drains: dict[str, float] = {}

    def next(self) -> Placement | Loading | None:
        if self._wished is not None:
            self.roster.see(self._wished, self.now, self._connected_at)
        wish = self._next_copy() or self._next_job()
        self._wished = wish.node if wish is not None else None
        return wish

    def _next_job(self) -> Placement | None:
        if not self.roster.free:
            return None
        may = self.roster.may_be_placed
        worth = None if self._scheduler.avoiding else [model for model in self._queue.waiting_by_model() if may(model)]
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
        if not ask.affinity and all(ask.model in node.resident for node in free):
            warm, model = self._pricing.warm, ask.model
            return decide.rank_warm(ask, [(node, *warm(node, model)) for node in free])
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
            if (terms := self._pricing.terms(ask, node, self._harm, self.now)) is not None
        ]

    def _placement(self, job: Waiting, ranked: list[Priced]) -> Placement:
        best, terms = ranked[0], ranked[0].terms
        ready_at = self.now + terms.load_s
        ends_at = ready_at + terms.prefill_s + terms.decode_s
        room = max(0, decide.MAX_CANDIDATES_KEPT - len(ranked))
        refused = list(itertools.islice(self.roster.unfit.items(), room))
        if len(refused) < room:
            able, free = self.roster.able(job.model, job.priority)[0], self.roster.free
            priced = {each.node.name for each in ranked}
            for name, node in self.roster.fit.items():
                if name not in priced:
                    taken = name in able and name not in free
                    refused.append((name, objections.ALL_TAKEN if taken else self._why_not(job, node)))
                    if len(refused) >= room:
                        break
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
        """Of the copies that seem to save most waiting, the one that does, by a survey of the fleet as it would be then."""
        looked = self._scheduler.survey(self.now)
        dear = SURE * (1 + self._scheduler.delayed)  # what a second of loading has to bring
        hopes: list[tuple[float, str, NodeView]] = []
        for model in sorted(looked.waits, key=lambda m: (-looked.most(m), m)):
            nodes = self.able(Ask(model, Priority.NORMAL, 0, 0)).values()
            least = min((self._pricing.load_s(node, model) for node in nodes), default=0.0)
            if PAYS_WITHIN_S * looked.most(model) <= dear * least:
                continue
            for node in nodes:
                if node.loading or node.name in looked.holders[model] or node.preload_failed(model, self.now):
                    continue
                if not node.beat.vram and node.resident:
                    continue  # of a node whose memory is not known, it is not known either what would have to leave
                hope = PAYS_WITHIN_S * looked.gain(model, node.name) - dear * self._pricing.load_s(node, model)
                if hope > 0:
                    hopes.append((hope, model, node))
        hopes.sort(key=lambda each: (-each[0], each[1], each[2].name))
        found: list[tuple[float, str, NodeView, Terms]] = []
        for hope, model, node in hopes:
            if len(found) == EXACT and hope <= found[-1][0]:
                break
            terms = self._pricing.terms(Ask(model, Priority.NORMAL, 0, 0), node, self._harm, self.now)
            if terms is None or terms.harm_s >= KEPT_S:
                continue
            harm = sum(looked.loss(v, node.name) for v in terms.evict if not self._is_last(v, node))
            drain = terms.load_s - self._pricing.load_s(node, model)
            found.append((hope - PAYS_WITHIN_S * harm - dear * drain, model, node, terms))
            found.sort(key=lambda each: (-each[0], each[1], each[2].name))
            del found[EXACT:]
        best: tuple[float, Loading | None] = (0.0, None)
        for _, model, node, terms in found:
            changed: dict[str, frozenset[str]] = {model: looked.holders[model] | {node.name}}
            leave = [(victim, node.name) for victim in terms.evict]
            first: Loading | None = Loading(node, model, Preload(self.now + terms.load_s, terms.evict))
            price = dear * terms.load_s
            taken = {node.name}
            for victim in (v for v in terms.evict if self._is_last(v, node)):
                if looked.holders[victim] - {node.name}:
                    first = None if len(taken) == 1 else first  # it is being loaded elsewhere: wait for that
                    continue
                other = self._elsewhere(victim, taken, model)
                if other is None:
                    break
                if len(taken) == 1:
                    first = other
                taken.add(other.node.name)
                price += dear * self._pricing.load_s(other.node, victim)
                leave += [(v, other.node.name) for v in other.order.evict]
                changed[victim] = looked.holders[victim] | {other.node.name}
            else:
                for victim, name in leave:
                    changed[victim] = changed.get(victim, looked.holders[victim]) - {name}
                scale = {victim: 1 + MARGIN for victim, _ in leave} | {model: 1 - MARGIN}
                doubted = looked.with_load(scale)
                worth = PAYS_WITHIN_S * (doubted.waiting - doubted.with_holders(changed).waiting) - price
                if worth > best[0]:
                    best = worth, first
        return best[1]

    def _elsewhere(self, model: str, taken: set[str], wanted: str) -> Loading | None:
        """Where the last copy of a model could go, if another one needs its place."""
        ask = Ask(model, Priority.NORMAL, 0, 0)
        best: tuple[float, Loading | None] = (KEPT_S, None)
        for node in self.able(ask).values():
            if node.name in taken or node.loading or model in node.resident or node.preload_failed(model, self.now):
                continue
            terms = self._pricing.terms(ask, node, self._harm, self.now)
            if terms is None or wanted in terms.evict or any(self._is_last(v, node) for v in terms.evict):
                continue
            if terms.load_s + terms.harm_s < best[0]:
                best = terms.load_s + terms.harm_s, Loading(node, model, Preload(self.now + terms.load_s, terms.evict))
        return best[1]

    def _is_last(self, model: str, node: NodeView) -> bool:
        """Nobody else has it in memory, and it will be asked for."""
        if any(model in other.resident for other in self.roster.held().get(model, {}).values() if other is not node):
            return False
        return self._pricing.demand.per_second(model, self.now) > 0

    def _harm(self, model: str, node: str) -> float:
        """Seconds that others lose when this model leaves that node."""
        scheduler, pricing = self._scheduler, self._pricing
        looked = scheduler.survey(self.now)
        view = scheduler.fleet.nodes[node]
        load_s = pricing.load_s(view, model)
        harm = PAYS_WITHIN_S * looked.loss(model, node, load_s)
        stays_s = max(STAYS_S, STAYS_LOADS * load_s)
        asked = pricing.demand.per_second(model, self.now) > 0
        if asked and self.now - view.loaded_at.get(model, 0.0) < stays_s:
            harm += KEPT_S
        if asked and self._is_last(model, view):  # it would soon be loaded again, and push out another
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
