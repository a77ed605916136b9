"""What is kept between looks, and left out of one, changes no decision: the same as when all is worked out anew each time."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey
from services.router import decide
from services.router.copies import Candidate, CopySearch
from services.router.decide import Priced
from services.router.fleet import Fleet, NodeView
from services.router.harm import Harm
from services.router.look import Look
from services.router.pricing import Ask, Pricing
from services.router.queue import PendingQueue, Waiting
from services.router.replicas import Survey
from services.router.roster import Able, Roster
from services.router.scheduler import Scheduler
from services.router.shares import LEAST, TOLERANCE
from services.router.wishes import Loading, Pause, Placement
from tests.router.building import a_beat

GB = 10**9
MODELS = ("m:1", "x:1", "y:1")
SIZES = dict.fromkeys(MODELS, 5 * GB)
NODES = ("a", "b", "c", "d")
CLIENTS = ("ann", "ben", "cec")  # the last one may run one job at a time


class PlainRoster(Roster):
    def free_holders(self, model: str) -> Able:
        return {name: node for name, node in self._held.get(model, {}).items() if node.free_slots > 0}

    def placeable(self, models: Iterable[str]) -> list[str]:
        return list(models)


class PlainPricing(Pricing):
    def warm(self, node: NodeView, model: str) -> tuple[float, float]:
        return self.speed(node, model)[:2]


class PlainHarm(Harm):
    def of(self, model: str, node: str) -> float:
        self.forget()
        return super().of(model, node)


class PlainSearch(CopySearch):
    def _hopeful(self) -> list[str]:
        return list(self._looked.waits)

    def _try(self, candidate: Candidate) -> Iterator[bool]:
        self._doubted.clear()
        return super()._try(candidate)


class PlainLook(Look):
    def step(self) -> Placement | Loading | Pause | None:
        scheduler = self._scheduler
        if scheduler.search is None:
            scheduler.roster = self.roster = PlainRoster(scheduler.fleet.nodes, scheduler.pricing.catalog)
            self.roster.refresh(self.now, self._connected_at)
        self._harm = self._plain_harm(lambda: scheduler.survey(self.now))
        return self._next_copy() or self._next_job()

    def _plain_harm(self, survey: Callable[[], Survey]) -> PlainHarm:
        return PlainHarm(self._pricing, self.roster, self._scheduler.fleet.nodes, survey, self.now)

    def _search(self) -> PlainSearch:
        looked = self._scheduler.survey(self.now)
        harm = self._plain_harm(lambda: looked)
        return PlainSearch(self._pricing, self.roster, harm, looked, delayed=self._scheduler.delayed, now=self.now)

    def _next_job(self) -> Placement | None:
        seen: set[str] = set()
        for head in self._queue.order():
            if head.model not in seen and not self._queue._at_limit(head):
                seen.add(head.model)
                if head.model in self._held or not self.roster.free:
                    continue
                if (found := self._of_head(head)) is not None:
                    return found
                self._held.add(head.model)  # for the rest of this look
        return None

    def _of_head(self, head: Waiting) -> Placement | None:
        placed = self._place(head, self._scheduler.asks[head.key])
        found = placed if isinstance(placed, Placement) or placed is None else self._place_another(head)
        if found is not None:
            self._backlog = None
        return found

    def _rank_free(self, ask: Ask, free: list[NodeView]) -> list[Priced]:
        return decide.rank(ask, self._price(ask, free))


def check_shares(queue: PendingQueue) -> None:
    """By the rule of ADR 8, worked out anew. Sums in another order may differ in their last digit."""
    had = {client: queue._shares._had.get(client, 0.0) for client in {*queue._waits, *queue._runs}}
    assert had == queue._shares._active
    for client, units in had.items():
        others = len(had) - 1
        mean = max(sum(had.values()) - units, LEAST) / others if others else math.inf
        over = (units / mean - 1) / TOLERANCE
        assert queue._shares.over.get(client, 0) in {max(0, int(over - 1e-9)), max(0, int(over + 1e-9))}
    assert queue._shares.over.keys() <= had.keys()


class World:
    def __init__(self, look: type[Look], pricing: Pricing) -> None:
        self.scheduler, self.look = Scheduler(Fleet(), pricing), look
        self.now, self.beats, self.number = 1_000.0, 1, 0
        self.running: list[tuple[str, JobKey, int]] = []
        for n, name in enumerate(NODES):
            beat = self._beat(name, loaded=("m:1", "x:1"))
            self.scheduler.fleet.nodes[name] = NodeView(name, beat, heard_at=self.now)
            for model in MODELS[: n + 1]:
                self.do(("learn", name, model, 0.5 + 0.3 * n))

    def _beat(self, name: str, **more: Any) -> Any:
        self.beats += 1
        facts: dict[str, Any] = {"slots": 2, "models": MODELS, "loaded": (), "sizes": SIZES, "beat": self.beats}
        facts["vram"] = 0 if name == "d" else 16 * GB  # without GPU: for batch only
        return a_beat(name, **{**facts, **more})

    def do(self, deed: tuple[Any, ...]) -> list[Any]:
        match deed:
            case ("submit", model, client, priority, prompt, chain, avoid):
                self.number += 1
                key = JobKey(client, f"j{self.number}")
                ms = self.now * 1000
                job = Waiting(
                    key,
                    model,
                    priority,
                    self.number,
                    ms,
                    ms + 6e5 - 1e3 * prompt,
                    10.0 * prompt,
                    max_running=client == "cec",
                )
                affinity = tuple(f"{chain}{n}:{100 * n}" for n in range(1, chain + 1))
                ask = Ask(model, priority, 10 * prompt, 50.0, affinity, avoid=avoid)
                self.scheduler.pricing.demand.asked(model, self.now)
                self.scheduler.add(job, ask)
            case ("end", n) if self.running:
                name, key, run = self.running.pop(n % len(self.running))
                self.scheduler.fleet.nodes[name].release((key, run), 0)
                self.scheduler.queue.ended(key, self.now, tokens=40.0 * n)
                check_shares(self.scheduler.queue)
            case ("beat", name, loaded, slots, draining, cap):
                view = self.scheduler.fleet.nodes[name]
                held = tuple(sorted({*loaded, *view.loading}))
                for model in list(view.preloads):
                    view.preload_ended(model)
                beat = self._beat(name, loaded=held, slots=slots, draining=draining, slots_per_model=cap)
                view.take(beat, self.now)
                self.scheduler.pricing.see(view)
            case ("learn", name, model, seconds):
                rates = self.scheduler.pricing.rates
                rates.learn(
                    name, model, SIZES[model], new_tokens=100, prefill_s=seconds, output_tokens=50, decode_s=seconds
                )
            case ("fail", name, n):
                self.scheduler.fleet.nodes[name].failed(JobKey("z", f"{n}"), self.now)
            case ("later", seconds):
                self.now += seconds
                self.scheduler.queue.rise(self.now * 1000)
        return self.wishes()

    def wishes(self) -> list[Any]:
        found, look = [], self.look(self.scheduler, self.now, self.now * 1000, 999.0)
        while (wish := look.next()) is not None:
            if isinstance(wish, Loading):
                found.append((wish.node.name, wish.model, wish.order))
                wish.node.preload(wish.model, wish.order)
                continue
            found.append(
                (wish.node.name, wish.job, wish.decision, wish.hold.ready_at, wish.hold.ends_at, wish.hold.evict)
            )
            run = (wish.job.key, wish.job.submitted)
            wish.node.reserve(run, wish.hold)
            self.scheduler.commit(wish, self.now)
            self.running.append((wish.node.name, *run))
        return found


model, node = st.sampled_from(MODELS), st.sampled_from(NODES)
deeds = st.lists(
    st.one_of(
        *[
            st.tuples(
                st.just("submit"), model, st.sampled_from(CLIENTS), st.sampled_from(list(Priority)), st.integers(1, 90),
                st.integers(0, 3), st.sampled_from([frozenset[str](), frozenset[str](), frozenset({"a"}), frozenset({"b", "c"})]),
            )
        ] * 4,
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(
            st.just("beat"), node, st.sets(model, max_size=2), st.integers(0, 3), st.booleans(), st.sampled_from([0, 0, 1]),
        ),
        st.tuples(st.just("learn"), node, model, st.floats(0.1, 3)),
        st.tuples(st.just("fail"), node, st.integers(0, 9)),
        st.tuples(st.just("later"), st.sampled_from([0.1, 2.0, 2.0, 400.0])),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(deeds)
def test_decisions_are_those_of_a_router_that_keeps_nothing(done) -> None:  # type: ignore[no-untyped-def]
    ours, plain = World(Look, Pricing()), World(PlainLook, PlainPricing())
    for deed in done:
        if deed[0] == "later":  # else they would all be dead
            for world in (ours, plain):
                for view in world.scheduler.fleet.nodes.values():
                    view.take(view.beat, world.now + deed[1])
        assert ours.do(deed) == plain.do(deed)


def test_a_model_that_only_some_classes_find_in_memory_is_loaded_for_the_others() -> None:
    """And again when its last holder for them has let it go: what was known of holders before says nothing."""
    world = World(Look, Pricing())

    def submit(model: str, priority: Priority) -> list[str]:
        return [wish[0] for wish in world.do(("submit", model, "ann", priority, 5, 0, frozenset[str]()))]

    def beat(name: str, *loaded: str, slots: int = 1) -> list[str]:
        return [wish[0] for wish in world.do(("beat", name, set(loaded), slots, False, 0))]

    beat("a", "m:1", "x:1", slots=0)
    beat("b", slots=0)
    beat("c", "m:1", "y:1")
    assert submit("m:1", Priority.INTERACTIVE) == ["c"]
    beat("d", "y:1")
    assert submit("y:1", Priority.BATCH) == ["d"]
    assert submit("y:1", Priority.INTERACTIVE) == []
    assert beat("a", "m:1", "x:1") == []  # c will have a slot again
    assert beat("c", "m:1") == ["a"]
