"""What another copy of a model brings, and what one that leaves costs."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.replicas import survey, wait_s

NODES = ("n1", "n2", "n3")
held = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.frozensets(st.sampled_from(NODES), min_size=1), max_size=3)
loads = st.fixed_dictionaries({model: st.floats(0, 3) for model in "abc"})


@settings(deadline=None)
@given(loads, held, st.sampled_from("abc"), st.sampled_from(NODES))
def test_a_copy_never_does_harm_one_that_leaves_never_helps_and_who_is_not_asked_for_counts_nothing(  # type: ignore[no-untyped-def]
    load, holders, model, node
) -> None:
    looked = survey(load, dict.fromkeys("abc", 5.0), dict.fromkeys(NODES, 2.0), holders)
    assert looked.gain(model, node) >= 0
    assert looked.loss(model, node, 4.0) >= 0
    if not load[model]:
        assert looked.gain(model, node) == looked.loss(model, node, 4.0) == 0
    total = sum(load[model] for model in holders)
    assert abs(sum(looked.busy[node] * 2.0 for node in NODES) - total) < 1e-6
    assert set(looked.waits) == {model for model in holders if load[model]}
    assert looked.with_holders({}).waiting() == looked.waiting()


def test_work_goes_to_the_holders_that_others_leave_idle() -> None:
    looked = survey(
        {"a": 2.0, "b": 1.0}, {"a": 5.0, "b": 5.0}, {"n1": 2.0, "n2": 2.0},
        {"a": frozenset({"n1"}), "b": frozenset({"n1", "n2"})},
    )  # fmt: skip
    assert looked.busy == {"n1": 1.0, "n2": 0.5}


def test_nodes_that_share_their_work_are_one_queue_and_a_second_copy_of_what_few_hold_is_known_to_pay() -> None:
    slots = dict.fromkeys(NODES, 2.0)
    everywhere = frozenset(NODES)
    looked = survey({"a": 3.0, "b": 1.5}, {"a": 5.0, "b": 20.0}, slots, {"a": everywhere, "b": frozenset({"n1"})})
    assert looked.pooled["n1"] == looked.pooled["n2"] == looked.pooled["n3"]
    assert looked.waits["b"] > 2 * looked.waits["a"]
    assert looked.with_holders({"b": frozenset({"n1", "n2"})}).waiting() < looked.waiting()
    assert looked.with_load({"b": 2.0}).waiting() > looked.waiting()


def test_a_busy_holder_beside_an_idle_node_makes_a_copy_worth_it_and_an_idle_one_does_not() -> None:
    def gain(load: float) -> float:
        return survey({"a": load}, {"a": 5.0}, {"n1": 2, "n2": 2}, {"a": frozenset({"n1"})}).gain("a", "n2")

    assert gain(0.05) < 0.01 < gain(1.0) < gain(1.8) < gain(3.0)


def test_the_only_copy_is_dearer_than_one_of_two() -> None:
    def loss(*nodes: str) -> float:
        return survey({"a": 1.0}, {"a": 5.0}, {"n1": 2, "n2": 2}, {"a": frozenset(nodes)}).loss("a", "n1", 4.0)

    assert loss("n1") > loss("n1", "n2") > 0


@settings(deadline=None)
@given(st.floats(0.1, 60), st.floats(1, 16), st.floats(0, 1.5), st.floats(0, 0.5))
def test_who_is_busier_lets_wait_longer_and_more_slots_shorter(work, slots, busy, more) -> None:  # type: ignore[no-untyped-def]
    assert wait_s(work, slots, busy) <= wait_s(work, slots, busy + more)
    assert wait_s(work, slots + 1, busy) <= wait_s(work, slots, busy)


@settings(deadline=None)
@given(loads, held, st.sampled_from("abc"), st.fixed_dictionaries({node: st.floats(0.3, 8) for node in NODES}))
def test_no_copy_saves_more_than_the_most_that_any_could(load, holders, model, slots) -> None:  # type: ignore[no-untyped-def]
    looked = survey(load, dict.fromkeys("abc", 5.0), slots, holders)
    if model in looked.waits:
        most = looked.most(model, max(slots.values()), min(looked.pooled.values()))
        assert all(looked.gain(model, node) <= most for node in NODES if node not in holders[model])
