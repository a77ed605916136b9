"""The search for a further copy goes in steps: what comes of it when it is put down, and the fleet changes meanwhile."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from libs.common.contracts.catalog import ModelPolicy
from libs.common.contracts.codec import encode
from libs.common.contracts.requests import Priority
from services.router.fleet import NodeView, Preload
from services.router.look import SEARCH_STALE_S, Look
from services.router.scheduler import Scheduler
from services.router.wishes import Loading, Pause, Placement
from tests.router.test_same_decisions import PlainLook
from tests.router.test_scheduler import GB, NOW, SIZES, a_node, a_scheduler, submit


def in_demand(*nodes: NodeView, models: Iterable[str] = ("m:1",), times: int = 200) -> Scheduler:
    """These models have been asked for so often within the last ten seconds that one node is too little."""
    scheduler = a_scheduler(*nodes)
    for n in range(times):
        for model in models:
            scheduler.pricing.demand.asked(model, NOW - 10 + n * 10 / times)
    return scheduler


def put_down(scheduler: Scheduler, now: float = NOW) -> Pause | Placement | Loading | None:
    """A look that is put down after its first step."""
    return Look(scheduler, now, now * 1000, 0.0).step()


def the_rest(scheduler: Scheduler, now: float = NOW) -> list[Placement | Loading]:
    found = []
    for wish in iter(Look(scheduler, now, now * 1000, 0.0).next, None):
        found.append(wish)
        if isinstance(wish, Loading):
            wish.node.preload(wish.model, wish.order)
        else:
            wish.node.reserve((wish.job.key, wish.job.submitted), wish.hold)
            scheduler.commit(wish, now)
    return found


def went(wishes: list[Placement | Loading]) -> list[tuple[str, str]]:
    return [(wish.model, wish.node.name) for wish in wishes if isinstance(wish, Loading)]


def test_a_search_that_was_put_down_goes_on_in_the_next_look_and_finds_the_same() -> None:
    whole, parts = (in_demand(a_node("a", loaded=("m:1",)), a_node("b")) for _ in range(2))
    steps = 0
    while isinstance(wish := put_down(parts), Pause):
        steps += 1
    assert steps > 1
    assert isinstance(wish, Loading)
    assert went([wish]) == went(the_rest(whole))[:1] == [("m:1", "b")]


def test_those_who_wait_do_not_wait_for_the_end_of_a_search() -> None:
    scheduler = in_demand(a_node("a", loaded=("m:1",)), a_node("b"))
    assert isinstance(put_down(scheduler), Pause)
    submit(scheduler)
    first = put_down(scheduler, NOW + 0.1)
    assert isinstance(first, Placement)
    assert scheduler.search is not None


def drained(scheduler: Scheduler) -> None:
    node = scheduler.fleet.nodes["b"]
    node.take(a_node("b", draining=True, beat=2).beat, NOW)


def began_anew(scheduler: Scheduler) -> None:
    scheduler.fleet.nodes["b"] = a_node("b", boot="boot-2", models=("x:1",))


def loads_another(scheduler: Scheduler) -> None:
    scheduler.fleet.nodes["b"].take(a_node("b", loaded=("m:1",), beat=2).beat, NOW)


def has_failed_it(scheduler: Scheduler) -> None:
    scheduler.fleet.nodes["b"].preload_ended("m:1", NOW)


def is_full_of_pins(scheduler: Scheduler) -> None:
    scheduler.fleet.nodes["b"].take(a_node("b", loaded=("x:1",), vram=6 * GB, beat=2).beat, NOW)
    scheduler.pricing.catalog.fold("model.x", encode(ModelPolicy(name="x:1", pins=("b",))))


def has_no_room_left(scheduler: Scheduler) -> None:
    scheduler.fleet.nodes["b"].take(a_node("b", loaded=("x:1",), vram=6 * GB, beat=2).beat, NOW)


@pytest.mark.parametrize(
    "change", [drained, began_anew, loads_another, has_failed_it, is_full_of_pins, has_no_room_left]
)
def test_what_was_found_is_not_done_when_it_has_become_impossible_meanwhile(change: Any) -> None:
    scheduler = in_demand(a_node("a", loaded=("m:1",)), a_node("b"))
    assert isinstance(put_down(scheduler), Pause)
    assert isinstance(put_down(scheduler), Pause)  # it has its price
    change(scheduler)
    assert the_rest(scheduler, NOW + 0.1) == []


def test_a_search_of_long_ago_is_begun_anew() -> None:
    scheduler = in_demand(a_node("a", loaded=("m:1",)), a_node("b"))
    assert isinstance(put_down(scheduler), Pause)
    before = scheduler.search
    later = NOW + SEARCH_STALE_S + 1
    for name, loaded in (("a", ("m:1",)), ("b", ())):
        scheduler.fleet.nodes[name].take(a_node(name, loaded=loaded, beat=2).beat, later)
    put_down(scheduler, later)
    assert scheduler.search is not before


def test_a_node_that_joined_after_the_survey_is_no_candidate_of_it() -> None:
    scheduler = in_demand(a_node("a", loaded=("m:1",)))
    assert the_rest(scheduler) == []
    scheduler.moved()
    scheduler.survey(NOW + 0.5)
    scheduler.fleet.nodes["b"] = a_node("b")
    assert the_rest(scheduler, NOW + 1.1) == []
    assert went(the_rest(scheduler, NOW + 2.5)) == [("m:1", "b")]


@pytest.mark.parametrize("became_last", [False, True])
def test_what_has_become_the_last_copy_meanwhile_does_not_leave(became_last: bool) -> None:
    scheduler = in_demand(
        a_node("a", loaded=("m:1",)),
        a_node("b", loaded=("x:1",), vram=6 * GB),
        a_node("c", loaded=("x:1",), vram=6 * GB, models=("x:1",)),
    )
    scheduler.pricing.demand.asked("x:1", NOW - 300)
    for _ in range(4):  # all but its last step
        assert isinstance(put_down(scheduler), Pause)
    if became_last:
        scheduler.fleet.nodes["c"].take(a_node("c", vram=6 * GB, models=("x:1",), beat=2).beat, NOW)
    assert went(the_rest(scheduler, NOW + 0.1)) == ([] if became_last else [("m:1", "b")])


model = st.sampled_from(sorted(SIZES))
nodes = st.lists(
    st.tuples(st.sets(model, max_size=2), st.sampled_from([None, 0, 6 * GB, 8 * GB, 24 * GB])), min_size=2, max_size=5
)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("beat"), st.integers(0, 4), st.sets(model, max_size=2), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("boot"), st.integers(0, 5), st.sets(model, max_size=2)),
        st.tuples(st.just("submit"), model, st.integers(0, 0)),
        st.tuples(st.just("fail"), st.integers(0, 4), model),
        st.just(("nothing",)),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(nodes, st.dictionaries(model, st.integers(5, 200), min_size=1), st.integers(0, 3))
def test_shortcuts_find_what_a_search_without_them_finds(facts, popular, jobs) -> None:  # type: ignore[no-untyped-def]
    found = []
    for kind in (Look, PlainLook):
        scheduler = a_scheduler(
            *(a_node(f"n{n}", loaded=tuple(sorted(loaded)), vram=vram) for n, (loaded, vram) in enumerate(facts))
        )
        for name, times in sorted(popular.items()):
            for n in range(times):
                scheduler.pricing.demand.asked(name, NOW - 10 + n * 10 / times)
            for n in range(jobs):
                submit(scheduler, int(n * 1e3) + times, name)
        look, wishes = kind(scheduler, NOW, NOW * 1000, 0.0), []
        while (wish := look.next()) is not None:
            if isinstance(wish, Loading):
                wish.node.preload(wish.model, wish.order)
                wishes.append((wish.node.name, wish.model, wish.order))
            else:
                wish.node.reserve((wish.job.key, wish.job.submitted), wish.hold)
                scheduler.commit(wish, NOW)
                wishes.append((wish.node.name, wish.job, wish.decision))
        event(f"{sum(isinstance(each[2], Preload) for each in wishes)} loads")
        found.append(wishes)
    assert found[0] == found[1]


@settings(max_examples=300, deadline=None)
@given(nodes, st.sets(model, min_size=1), changes)
def test_whatever_happens_between_two_steps_no_rule_is_broken(facts, popular, happens) -> None:  # type: ignore[no-untyped-def]
    scheduler = in_demand(
        *(a_node(f"n{n}", loaded=tuple(sorted(loaded)), vram=vram) for n, (loaded, vram) in enumerate(facts)),
        models=sorted(popular), times=60,
    )  # fmt: skip
    fleet, now = scheduler.fleet.nodes, NOW
    for beats, change in enumerate(happens, 2):
        now += 0.01
        wish = put_down(scheduler, now)
        event(type(wish).__name__)
        if isinstance(wish, Loading):
            resident = {m: {n for n, view in fleet.items() if m in view.resident} for m in SIZES}
            assert fleet[wish.node.name] is wish.node
            assert not wish.node.beat.draining
            assert not wish.node.loading
            assert wish.model in wish.node.disk - wish.node.loaded
            assert set(wish.order.evict) <= wish.node.resident
            for victim in wish.order.evict:
                asked = scheduler.pricing.demand.per_second(victim, now) > 0
                assert not asked or resident[victim] - {wish.node.name}, "the last copy of what is asked for"
            wish.node.preload(wish.model, wish.order)
        elif isinstance(wish, Placement):
            wish.node.reserve((wish.job.key, wish.job.submitted), wish.hold)
            scheduler.commit(wish, now)
        match change:
            case ("beat", n, loaded, slots, draining) if f"n{n}" in fleet:
                view = fleet[f"n{n}"]
                held = tuple(sorted(loaded))
                view.take(
                    a_node(view.name, boot=view.beat.boot, loaded=held, slots=slots, draining=draining, beat=beats,
                           vram=view.beat.vram).beat, now,
                )  # fmt: skip
            case ("boot", n, loaded):
                fleet[f"n{n}"] = a_node(f"n{n}", boot=f"boot-{beats}", loaded=tuple(sorted(loaded)), vram=8 * GB)
            case ("submit", name, _):
                submit(scheduler, beats, name, priority=Priority.NORMAL)
            case ("fail", n, name) if f"n{n}" in fleet:
                fleet[f"n{n}"].preload_ended(name, now)
