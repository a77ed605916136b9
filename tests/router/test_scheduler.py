"""Which job next and on which node: queue, fleet and prices put together (peers-and-routing.md §5.2-5.3). Pure."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.contracts.catalog import ModelPolicy, NodePolicy, OnCpu
from libs.common.contracts.codec import encode
from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey
from services.router import objections, outlook
from services.router.catalog import Catalog
from services.router.decide import MAX_CANDIDATES_KEPT
from services.router.fleet import PRELOAD_RETRY_S, Fleet, Hold, NodeView
from services.router.look import Look
from services.router.pricing import Ask
from services.router.queue import Waiting
from services.router.scheduler import Ran, Scheduler
from services.router.wishes import Loading, Placement
from tests.router.building import a_beat

NOW = 1_000.0
GB = 10**9
SIZES = {"m:1": 5 * GB, "x:1": 5 * GB, "y:1": 2 * GB}


def a_node(name: str = "n1", **more: Any) -> NodeView:
    facts: dict[str, Any] = {"slots": 2, "models": tuple(SIZES), "loaded": (), "sizes": SIZES, "vram": 24 * GB}
    view = NodeView(name, a_beat(name, **{**facts, **more}), heard_at=NOW)
    view.loaded_at = dict.fromkeys(view.loaded, 0.0)
    return view


def a_scheduler(*nodes: NodeView) -> Scheduler:
    fleet = Fleet()
    fleet.nodes = {node.name: node for node in nodes}
    return Scheduler(fleet)


def submit(scheduler: Scheduler, n: int = 1, model: str = "m:1", **more: Any) -> JobKey:
    key = JobKey(more.pop("client", "acme"), f"j{n}")
    priority = more.pop("priority", Priority.NORMAL)
    waiting = Waiting(key, model, priority, n, NOW * 1000, NOW * 1000 + 6e5)
    scheduler.add(waiting, Ask(model, priority, more.pop("prompt", 500), 100, **more))
    return key


def wishes(scheduler: Scheduler, now: float = NOW) -> list[Placement | Loading]:
    """All of them, carried out as the shell does."""
    found = []
    for wish in iter(Look(scheduler, now, now * 1000, 0.0).next, None):
        found.append(wish)
        if isinstance(wish, Loading):
            wish.node.preload(wish.model, wish.order)
        else:
            wish.node.reserve((wish.job.key, wish.job.submitted), wish.hold)
            scheduler.commit(wish, now)
        assert len(found) < 1_000
    return found


def went(scheduler: Scheduler, now: float = NOW) -> dict[str, str]:
    return {wish.job.key.job: wish.node.name for wish in wishes(scheduler, now) if isinstance(wish, Placement)}


def decided(*nodes: NodeView, **job: Any) -> dict[str, str]:
    scheduler = a_scheduler(*nodes)
    submit(scheduler, **job)
    return went(scheduler)


def test_the_model_in_memory_wins_over_an_idle_node_and_the_less_busy_of_two() -> None:
    assert decided(a_node("a"), a_node("b", loaded=("m:1",))) == {"j1": "b"}
    busy = a_node("a", loaded=("m:1",), running=[(JobKey("acme", "r"), 1)])
    assert decided(busy, a_node("b", loaded=("m:1",))) == {"j1": "b"}


@pytest.mark.parametrize(
    "kept_away",
    [
        {"draining": True}, {"reachable": False}, {"suspect_models": ("m:1",)}, {"models": ("x:1",)}, {"slots": 0},
        {"cold_stuck": True, "loaded": ()},
    ],
)  # fmt: skip
def test_a_node_that_cannot_take_it_does_not_and_says_why(kept_away: dict[str, Any]) -> None:
    assert decided(a_node("a", **{"loaded": ("m:1",), **kept_away})) == {}
    scheduler = a_scheduler(a_node("a", **{"loaded": ("m:1",), **kept_away}), a_node("b"))
    submit(scheduler)
    (placed,) = (wish for wish in wishes(scheduler) if isinstance(wish, Placement))
    assert placed.node.name == "b"
    assert [each.node for each in placed.decision.candidates] == ["b", "a"]
    assert placed.decision.candidates[1].verdict


def test_silent_dead_and_set_aside_nodes_get_nothing() -> None:
    for change in ({"heard_at": NOW - 6}, {"heard_at": 0.0}, {"gone": True}, {"set_aside_until": NOW + 1}):
        node = a_node(loaded=("m:1",))
        for name, value in change.items():
            setattr(node, name, value)
        assert decided(node) == {}, change


def test_an_operator_drains_a_node() -> None:
    scheduler = a_scheduler(a_node(loaded=("m:1",)))
    scheduler.pricing.catalog.fold("node.n1", encode(NodePolicy(name="n1", draining=True)))
    submit(scheduler)
    assert went(scheduler) == {}
    scheduler.pricing.catalog.fold("node.n1", b"")
    assert went(scheduler) == {"j1": "n1"}


@pytest.mark.parametrize(
    ("model", "priority", "policy", "taken"),
    [
        ("m:1", Priority.NORMAL, OnCpu.AUTO, False), ("m:1", Priority.BATCH, OnCpu.AUTO, True),
        ("y:1", Priority.INTERACTIVE, OnCpu.AUTO, True), ("y:1", Priority.BATCH, OnCpu.NEVER, False),
        ("m:1", Priority.INTERACTIVE, OnCpu.ALWAYS, True),
    ],
)  # fmt: skip
def test_a_node_without_gpu_takes_small_or_batch_work_unless_told_otherwise(
    model: str, priority: Priority, policy: OnCpu, taken: bool
) -> None:
    scheduler = a_scheduler(a_node(vram=0))
    scheduler.pricing.catalog.models[model] = ModelPolicy(name=model, on_cpu=policy)
    submit(scheduler, model=model, priority=priority)
    assert bool(went(scheduler)) == taken


def test_a_node_that_failed_the_job_comes_last() -> None:
    avoid = frozenset({"a"})
    assert decided(a_node("a", loaded=("m:1",)), a_node("b"), avoid=avoid) == {"j1": "b"}
    assert decided(a_node("a", loaded=("m:1",)), avoid=avoid) == {"j1": "a"}
    assert decided(a_node("a", loaded=("m:1",)), a_node("b", loaded=("m:1",)), avoid=avoid) == {"j1": "b"}
    assert decided(a_node("a"), a_node("b"), avoid=avoid) == {"j1": "b"}
    run = (JobKey("acme", "r"), 1)
    busy = a_node("b", loaded=("m:1",), slots=1, running=[run])
    assert decided(a_node("a", loaded=("m:1",)), busy, avoid=avoid) == {}  # b will be free again


def test_a_second_cold_model_waits_for_the_first_and_jobs_of_one_share_a_load() -> None:
    scheduler = a_scheduler(a_node(slots=4))
    for n, model in enumerate(("m:1", "x:1", "m:1"), 1):
        submit(scheduler, n, model)
    assert went(scheduler) == {"j1": "n1", "j3": "n1"}
    assert scheduler.fleet.nodes["n1"].loading == {"m:1"}


def test_while_a_model_loads_the_slots_are_for_those_in_memory() -> None:
    node = a_node(slots=3, loaded=("x:1",))
    scheduler = a_scheduler(node)
    submit(scheduler, 1, "m:1")
    assert went(scheduler) == {"j1": "n1"}  # this one has it loaded
    waits = submit(scheduler, 2, "m:1")
    submit(scheduler, 3, "x:1")
    assert went(scheduler) == {"j3": "n1"}
    assert outlook.why_not(Look(scheduler, NOW, NOW * 1000, 0.0), scheduler.asks[waits]) == objections.STILL_LOADING

    node.take(a_beat("n1", beat=2, slots=3, models=tuple(SIZES), loaded=("x:1", "m:1"), sizes=SIZES), NOW + 5)
    assert went(scheduler, NOW + 5) == {"j2": "n1"}


def test_a_model_that_everything_leaves_for_may_be_waited_for_in_a_slot() -> None:
    scheduler = a_scheduler(a_node(slots=3, loaded=("x:1",), vram=6 * GB))
    for n in (1, 2):
        submit(scheduler, n, "m:1")
    assert went(scheduler) == {"j1": "n1", "j2": "n1"}


def test_a_conversation_returns_to_the_node_that_holds_it_unless_that_is_dearer() -> None:
    def second_turn(first: str, busy: bool) -> dict[str, str]:
        nodes = [a_node("a", loaded=("m:1",)), a_node("b", loaded=("m:1",))]
        scheduler = a_scheduler(*nodes)
        scheduler.pricing.prefixes.remember(first, "m:1", ("turn1:9000",))
        if busy:
            for n in range(2):
                key = JobKey("acme", f"r{n}")
                hold = Hold("m:1", ends_at=NOW + 100)
                scheduler.fleet.nodes[first].reserve((key, n), hold)
        submit(scheduler, prompt=9_500, affinity=("turn1:9000", "turn2:9500"))
        return went(scheduler)

    assert second_turn("a", busy=False) == {"j1": "a"}
    assert second_turn("b", busy=False) == {"j1": "b"}
    assert second_turn("b", busy=True) == {"j1": "a"}


def a_turn(scheduler: Scheduler, n: int, *, new_tokens: int, taught: int = 9_000, rate: float = 1_000.0) -> None:
    """A turn of 10,000 tokens of which the turn before brought `taught`; it took as long as `new_tokens` do."""
    key = submit(scheduler, n, prompt=10_000, affinity=(f"turn{n - 1}:{taught}", f"turn{n}:10000"))
    (wish,) = wishes(scheduler)
    assert isinstance(wish, Placement)
    ran = Ran("n1", "m:1", 10_000, 100, new_tokens / rate, 2.0, cached_tokens=wish.decision.cached_tokens)
    scheduler.ran(key, ran)
    wish.node.release((key, n), 0)
    scheduler.queue.ended(key, NOW)


def test_what_a_node_keeps_of_prompts_is_learned_from_how_long_they_take_and_its_speed_is_not_mistaken() -> None:
    scheduler = a_scheduler(a_node(loaded=("m:1",)))
    rates, keeping = scheduler.pricing.rates, scheduler.pricing.keeping
    a_turn(scheduler, 1, new_tokens=10_000)
    for n in range(2, 60):
        a_turn(scheduler, n, new_tokens=10_000)  # nothing was kept, whatever was believed
    assert keeping.share("n1", 0) < 0.1
    assert rates.seen("n1", "m:1") == pytest.approx((0.001, 0.02))
    for n in range(60, 160):
        a_turn(scheduler, n, new_tokens=1_000)  # all was
    assert keeping.share("n1", 0) > 0.9
    assert rates.seen("n1", "m:1") == pytest.approx((0.001, 0.02))


def test_a_speed_that_no_share_of_the_prompt_explains_is_learned_although_it_was_cached() -> None:
    scheduler = a_scheduler(a_node(loaded=("m:1",)))
    for n in range(1, 5):
        a_turn(scheduler, n, new_tokens=10_000 if n == 1 else 1_000)
    for n in range(5, 60):
        a_turn(scheduler, n, new_tokens=10_000, rate=250.0)
    seen = scheduler.pricing.rates.seen("n1", "m:1")
    assert seen is not None
    assert seen[0] == pytest.approx(0.004, rel=0.05)


def test_of_a_job_that_ended_elsewhere_or_badly_nothing_is_learned_about_what_is_kept() -> None:
    scheduler = a_scheduler(a_node("n1", loaded=("m:1",)), a_node("n2", loaded=("m:1",), draining=True))
    a_turn(scheduler, 1, new_tokens=10_000)
    scheduler.ran(JobKey("acme", "before"), Ran("n2", "m:1", 10_000, 100, 10.0, 2.0))
    for n, end in ((2, "elsewhere"), (3, "dropped")):
        key = submit(scheduler, n, prompt=10_000, affinity=("turn1:9000", f"turn{n}:10000"))
        (wish,) = wishes(scheduler)
        assert key in scheduler.found
        if end == "elsewhere":
            scheduler.ran(key, Ran("n2", "m:1", 10_000, 100, 10.0, 2.0))
        else:
            scheduler.drop(key)
        assert key not in scheduler.found
        wish.node.release((key, n), 0)
    assert scheduler.pricing.keeping.share("n1", 0) == scheduler.pricing.keeping.share("n2", 0) == 1.0


def pinned(*nodes: str) -> Catalog:
    catalog = Catalog()
    catalog.models["m:1"] = ModelPolicy(name="m:1", pins=nodes)
    return catalog


def test_a_pin_is_loaded_and_one_that_failed_is_left_for_two_minutes() -> None:
    scheduler = a_scheduler(a_node("a"), a_node("b"))
    scheduler.pricing.catalog = pinned("b")
    (wish,) = wishes(scheduler)
    assert isinstance(wish, Loading)
    assert (wish.node.name, wish.model) == ("b", "m:1")
    wish.node.preload_ended("m:1", failed_at=NOW)
    node = scheduler.fleet.nodes["b"]
    for later, tried in ((2.0, False), (PRELOAD_RETRY_S - 1, False), (PRELOAD_RETRY_S + 2, True)):
        node.heard_at = NOW + later
        assert bool(wishes(scheduler, NOW + later)) == tried


def loads(clients: dict[str, dict[str, int]], seen_before: int = 20) -> list[tuple[str, str]]:
    """Which copies are wanted: six nodes of one slot, two of them hold m:1, one each x:1 and y:1; all of them busy."""
    held = ("m:1", "m:1", "x:1", "y:1")
    nodes = [
        a_node(f"b{n}", loaded=(model,), slots=1, running=[(JobKey("z", f"r{n}"), 1)]) for n, model in enumerate(held)
    ]
    scheduler = a_scheduler(*nodes, *(a_node(f"f{n}", slots=1) for n in range(2)))
    for model in sorted(SIZES):
        for n in range(seen_before):
            scheduler.pricing.demand.asked(model, NOW - 10 * n)
    number = 0
    for client, models in clients.items():
        for model, count in models.items():
            for _ in range(count):
                number += 1
                submit(scheduler, number, model, client=client)
    return [(wish.node.name, wish.model) for wish in wishes(scheduler) if isinstance(wish, Loading)]


few = st.dictionaries(st.sampled_from(sorted(SIZES)), st.integers(1, 12), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["ann", "ben", "cec"]), few, min_size=1, max_size=3),
    st.sampled_from(sorted(SIZES)), st.integers(0, 2000),
)  # fmt: skip
def test_what_a_client_asks_beyond_its_share_loads_no_copies(others, flooded, beyond) -> None:  # type: ignore[no-untyped-def]
    """Six slots for 120 s are 144 jobs of 5 s: 145 of one client are more than its share, whatever the others ask for."""
    share = 145
    assert loads({**others, "flood": {flooded: share}}) == loads({**others, "flood": {flooded: share + beyond}})


def test_a_client_that_is_alone_on_the_fleet_gets_its_copies() -> None:
    assert not loads({}, seen_before=0)
    found = loads({"ann": {"x:1": 500}}, seen_before=0)
    assert {model for _, model in found} == {"x:1"}
    assert {"f0", "f1"} <= {node for node, _ in found}


def test_a_pin_is_not_loaded_where_loads_do_not_come() -> None:
    scheduler = a_scheduler(a_node("b", cold_stuck=True))
    scheduler.pricing.catalog = pinned("b")
    assert wishes(scheduler) == []


def test_a_pinned_model_never_leaves() -> None:
    for catalog in (Catalog(), pinned("n1")):
        scheduler = a_scheduler(a_node(loaded=("m:1", "y:1"), vram=10 * GB))
        scheduler.pricing.catalog = catalog
        submit(scheduler, model="x:1")
        placed = [wish for wish in wishes(scheduler) if isinstance(wish, Placement)]
        if catalog.models:
            assert not placed  # what else could leave is not enough
        else:
            assert placed[0].hold.evict == ("m:1",)


def test_the_record_of_a_decision_stays_small_in_a_large_fleet() -> None:
    scheduler = a_scheduler(*(a_node(f"n{n}", loaded=("m:1",)) for n in range(60)))
    submit(scheduler)
    (placed,) = wishes(scheduler)
    assert isinstance(placed, Placement)
    assert len(placed.decision.candidates) == MAX_CANDIDATES_KEPT


fleets = st.lists(
    st.tuples(
        st.integers(0, 3), st.sets(st.sampled_from(sorted(SIZES)), max_size=2), st.sampled_from([None, 0, 8 * GB, 24 * GB]),
        st.booleans(), st.sets(st.sampled_from(sorted(SIZES))),
    ),
    max_size=5,
)  # fmt: skip
asked = st.lists(st.tuples(st.sampled_from(sorted(SIZES)), st.sampled_from(list(Priority))), max_size=12)


@settings(max_examples=150, deadline=None)
@given(fleets, asked, st.randoms(use_true_random=False))
def test_no_look_breaks_a_rule_and_the_order_of_nodes_changes_nothing(facts, jobs, shuffling) -> None:  # type: ignore[no-untyped-def]
    def verdicts(order: list[int]) -> list[Any]:
        scheduler = a_scheduler(
            *(
                a_node(f"n{n}", slots=slots, loaded=tuple(sorted(loaded)), vram=vram, draining=draining,
                       models=tuple(sorted(disk | loaded)))
                for n in order
                for slots, loaded, vram, draining, disk in [facts[n]]
            )
        )  # fmt: skip
        for n, (model, priority) in enumerate(jobs, 1):
            submit(scheduler, n, model, priority=priority)
            scheduler.pricing.demand.asked(model, NOW)
        found = []
        for wish in wishes(scheduler):
            model = wish.model if isinstance(wish, Loading) else wish.job.model
            evict = wish.order.evict if isinstance(wish, Loading) else wish.hold.evict
            assert not wish.node.beat.draining
            assert model in wish.node.disk
            assert set(evict) <= wish.node.loaded
            found.append((type(wish), wish.node.name, model, evict, getattr(wish, "decision", None)))
        for node in scheduler.fleet.nodes.values():
            assert len(node.runs) <= node.beat.slots
            assert len(node.loading) <= 1
        return found

    order = list(range(len(facts)))
    first = verdicts(order)
    shuffling.shuffle(order)
    assert verdicts(order) == first
