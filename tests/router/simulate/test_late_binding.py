"""What the simulator tells and allows a policy that keeps jobs back."""

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any

import pytest

from services.router.simulate.fleet import ModelSpec
from services.router.simulate.policy import Binding, Job, NodeView, Observed, Policy
from services.router.simulate.simulation import PolicyFailed
from tests.router.simulate.playing import first_tokens, fleet, job, node, places, play


class FirstFree(Policy):
    """One queue, the first node with a free slot; remembers what it was told."""

    victims: tuple[str, ...] = ()

    def __init__(self, nodes: Sequence[NodeView], models: Mapping[str, ModelSpec], chance: Random) -> None:
        self.nodes = nodes
        self.waiting: list[Job] = []
        self.told: list[tuple[Any, ...]] = []

    def arrived(self, job: Job, now: float) -> Iterable[Binding]:
        self.waiting.append(job)
        return ()

    def changed(self, now: float) -> Iterable[Binding]:
        while self.waiting:
            free = [node.name for node in self.nodes if node.free_slots]
            if not free:
                return
            yield Binding(self.waiting.pop(0).id, free[0], self.victims)

    def started(self, job: Job, node: str, now: float) -> None:
        self.told.append(("started", job.id, node, now))

    def loaded(self, model: str, node: str, now: float, seconds: float) -> None:
        self.told.append(("loaded", model, now, seconds))

    def first_token(self, job: Job, node: str, now: float, prefill_s: float, prefilled_tokens: int) -> None:
        self.told.append(("first_token", job.id, now, round(prefill_s, 6), prefilled_tokens))

    def finished(self, job: Job, node: str, now: float, observed: Observed) -> None:
        self.told.append(("finished", job.id, now, observed))


class Kept:
    """A factory that keeps the policy it made."""

    policy: Any

    def __init__(self, kind: Any, **fields: Any) -> None:
        self.kind, self.fields = kind, fields

    def __call__(self, *arguments: Any) -> Any:
        self.policy = self.kind(*arguments)
        for name, value in self.fields.items():
            setattr(self.policy, name, value)
        return self.policy


def test_a_job_that_is_kept_back_goes_where_a_slot_becomes_free():
    played = play(fleet(node("n1"), node("n2")), [job(0, output=100), job(0, "b"), job(0, "c")], FirstFree)

    assert places(played) == "n1 n2 n2"
    assert [run.bound_at for run, _ in played.runs] == [0, 0, 6.5]


def test_a_policy_hears_what_a_router_would():
    made = Kept(FirstFree)
    play(fleet(node()), [job(0, conversation="x"), job(1, prompt=200, conversation="x")], made)

    assert made.policy.told == [
        ("started", 0, "n1", 0),
        ("loaded", "a", 4.5, 4.5),
        ("first_token", 0, 5.5, 1, 100),
        ("finished", 0, 6.5, Observed(4.5, 100, 1, 10, 1)),
        ("started", 1, "n1", 6.5),
        ("first_token", 1, 7.4, 0.9, 90),
        ("finished", 1, 8.4, Observed(0, 90, pytest.approx(0.9), 10, 1)),
    ]


def test_a_load_is_told_without_its_wait_a_jobs_load_with_it():
    made = Kept(FirstFree)
    play(fleet(node(slots=2)), [job(0, "a"), job(0, "b")], made)

    told = made.policy.told
    assert [entry for entry in told if entry[0] == "loaded"] == [("loaded", "a", 4.5, 4.5), ("loaded", "b", 9, 4.5)]
    assert [entry[3].load_s for entry in told if entry[0] == "finished"] == [4.5, 9]


def test_a_policy_never_sees_the_length_of_an_answer_before_its_end():
    assert "output_tokens" not in Job._fields


def test_named_victims_leave_although_others_were_used_longer_ago():
    # Room for two: a, then b; c names b.
    jobs = [job(0, "a"), job(20, "b"), job(40, "c"), job(60, "a"), job(80, "b")]

    assert first_tokens(play(fleet(node()), jobs, FirstFree)) == [5.5, 25.5, 45.5, 65.5, 85.5]
    named = play(fleet(node()), jobs, Kept(FirstFree, victims=("b",)))
    assert first_tokens(named) == [5.5, 25.5, 45.5, 61, 85.5]


def test_a_load_waits_for_its_named_victim_though_another_model_is_idle():
    # b answers until 30.5 (from 20); c comes at 26 and names b, although a is idle.
    jobs = [job(0, "a"), job(20, "b", output=50), job(26, "c")]

    assert first_tokens(play(fleet(node(slots=2)), jobs, FirstFree))[2] == 26 + 5.5
    assert first_tokens(play(fleet(node(slots=2)), jobs, Kept(FirstFree, victims=("b",))))[2] == 30.5 + 5.5


def test_named_victims_stay_when_there_is_room_and_others_help_when_they_are_not_enough():
    # Two of 4.5 GB and room for another one: b stays. A large one needs both.
    jobs = [job(0, "a"), job(20, "b"), job(40, "c"), job(60, "b")]
    roomy = play(fleet(node(vram_gb=14)), jobs, Kept(FirstFree, victims=("b", "nowhere")))
    assert first_tokens(roomy)[3] == 61

    large = [job(0, "a"), job(20, "b"), job(40, "big")]
    played = play(fleet(node(), a=4.5, b=4.5, big=9), large, Kept(FirstFree, victims=("b",)))
    assert first_tokens(played)[2] == 40 + 9 + 2


def test_the_nodes_show_what_they_are_doing():
    seen = []

    class Looking(FirstFree):
        def changed(self, now: float) -> Iterable[Binding]:
            yield from super().changed(now)
            (one,) = self.nodes
            seen.append(
                (now, one.depth, one.free_slots, one.loading, sorted(one.residents), one.free_gb, one.running("a"))
            )
            assert one.has("a")

    play(fleet(node(slots=2)), [job(0, "a"), job(1, "b")], Looking)

    assert seen == [
        (0, 1, 1, "a", [], 5.5, 1),
        (1, 2, 0, "a", [], 5.5, 1),
        (4.5, 2, 0, "b", ["a"], 1, 1),
        (6.5, 1, 1, "b", ["a"], 1, 0),
        (9, 1, 1, None, ["a", "b"], 1, 0),
        (11, 0, 2, None, ["a", "b"], 1, 0),
    ]


def test_a_policy_is_woken_when_it_asked_and_only_the_newest_wish_counts():
    class Patient(FirstFree):
        calls: list[float]
        wish: float | None = None

        def changed(self, now: float) -> Iterable[Binding]:
            self.calls = [*getattr(self, "calls", []), now]
            self.wish = {0: 9.0, 1: 3.0}.get(now)
            return super().changed(now) if now >= 3 else ()

        def wake_at(self, now: float) -> float | None:
            return self.wish

    made = Kept(Patient)
    played = play(fleet(node()), [job(0), job(1)], made)

    assert [run.bound_at for run, _ in played.runs] == [3, 9.5]
    assert made.policy.calls == [0, 1, 3, 7.5, 9.5, 11.5]


def test_a_slot_that_becomes_free_at_the_moment_of_an_arrival_is_free():
    assert [run.bound_at for run, _ in play(fleet(node()), [job(0), job(6.5)], FirstFree).runs] == [0, 6.5]


@pytest.mark.parametrize(
    ("bindings", "said"),
    [
        ((), "1 jobs never ran, the first is number 0"),
        ((Binding(0, "n9"),), "no node 'n9'"),
        ((Binding(0, "n1"), Binding(0, "n1")), "bound twice"),
        ((Binding(1, "n1"),), "job 1 has not arrived"),
        ((Binding(0, "small"),), "the model of job 0 takes 4.5 GB, small has less"),
    ],
)
def test_a_policy_that_breaks_the_rules_is_stopped(bindings: tuple[Binding, ...], said: str):
    class Broken(FirstFree):
        def arrived(self, job: Job, now: float) -> Iterable[Binding]:
            return bindings

    with pytest.raises(PolicyFailed, match=said):
        play(fleet(node(), node("small", vram_gb=4)), [job(0)], Broken)


def test_a_wish_to_be_woken_in_the_past_is_refused():
    class Hasty(FirstFree):
        def wake_at(self, now: float) -> float | None:
            return now

    with pytest.raises(PolicyFailed, match="asks at 0 s to be woken at 0 s"):
        play(fleet(node()), [job(0)], Hasty)
