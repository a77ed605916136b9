"""The production policy in virtual time, against the baselines and the bound. Seeds are fixed: the figures do not vary."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.fleet import NodeView
from services.router.simulate.arriero import Arriero
from services.router.simulate.fleet import Fleet
from services.router.simulate.report import Report, report
from services.router.simulate.workload import make_workload
from tests.router.simulate.playing import fleet, job, node, play
from tests.router.simulate.test_invariants import a_fleet, jobs, nodes

SIZES = {"a": 4.9, "b": 2.0, "c": 7.5, "d": 3.3, "e": 5.2, "f": 8.0, "g": 2.8, "h": 6.1, "i": 4.1, "j": 3.9}  # GB


def eight_nodes() -> Fleet:
    usual = {"vram_gb": 24, "slots": 2, "decode_tps": 60, "prefill_tps": 1500, "load_gbps": 1}
    return fleet(*(node(f"n{n}", **usual) for n in range(8)), **SIZES)


def compared(workload: str, load: float, *policies: str) -> dict[str, Report]:
    made = make_workload(workload, eight_nodes(), jobs=3_000, seed=1, load=load)
    return {policy: report(play(eight_nodes(), made, policy)) for policy in policies}


@pytest.mark.parametrize("workload", ["steady", "bursts", "shift"])
def test_at_high_load_it_is_near_the_bound_and_far_from_the_baselines(workload: str) -> None:
    by = compared(workload, 0.9, "arriero", "loaded-then-depth", "least-depth", "oracle")
    mine = by["arriero"]
    assert mine.ttft_p95 <= 1.6 * by["oracle"].ttft_p95
    assert 2 * mine.ttft_p95 <= min(by["loaded-then-depth"].ttft_p95, by["least-depth"].ttft_p95)
    assert mine.loads_per_1000 <= by["least-depth"].loads_per_1000 / 15  # the aim is a twentieth


def test_at_low_load_no_baseline_is_better_by_more_than_a_twentieth() -> None:
    baselines = ("loaded-then-depth", "least-depth", "round-robin", "random")
    by = compared("steady", 0.2, "arriero", *baselines)
    for name in baselines:
        assert by["arriero"].ttft_p95 <= 1.05 * by[name].ttft_p95, name


def test_a_flood_of_one_client_reaches_no_other() -> None:
    by = compared("flood", 0.9, "arriero", "oracle")
    assert by["arriero"].jain >= 0.95
    for client, figures in by["arriero"].clients.items():
        if client != "flood":
            assert figures.ttft_p95 <= 1.25 * by["oracle"].clients[client].ttft_p95


def test_a_cold_model_gets_in_although_one_client_asks_for_far_more_than_there_is() -> None:
    """One slot, models that do not fit together; three times what the slot can do waits for the one in memory."""
    flood = [job(n * 2 / 3, "a") for n in range(1_500)]  # 2 s each
    made = sorted([*flood, job(10, "b")], key=lambda one: one.t)
    played = play(fleet(node(vram_gb=6)), made, "arriero")
    (waited,) = (run.first_token_at - 10 for run, _ in played.runs if run.job.model == "b")
    assert waited < 300


@settings(max_examples=60, deadline=None)
@given(st.lists(nodes, min_size=1, max_size=4), st.lists(jobs, min_size=1, max_size=40))
def test_every_job_is_placed_and_no_node_ever_has_too_much(described, made) -> None:  # type: ignore[no-untyped-def]
    """Nobody starves: a job that is never bound fails the run. Each change of each node is looked at."""
    made.sort(key=lambda job: job.t)
    counted = NodeView._count

    def watched(view: NodeView) -> None:
        counted(view)
        assert len(view.runs) <= view.beat.slots
        assert len(view.loading) <= 1
        sizes = sum(view.sizes[model] for model in view.resident | view.loading)
        assert sizes <= (view.beat.vram or 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NodeView, "_count", watched)
        first = play(a_fleet(described), made, Arriero)
    again = play(a_fleet(described), made, Arriero)
    assert [(run.bound_at, where) for run, where in first.runs] == [(run.bound_at, where) for run, where in again.runs]
