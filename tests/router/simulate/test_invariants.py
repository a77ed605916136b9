"""What holds for every fleet, every workload and every policy, early or late."""

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.simulate import machine
from services.router.simulate.fleet import Fleet, NodeSpec
from services.router.simulate.policies import POLICIES
from services.router.simulate.report import report
from services.router.simulate.trace import TraceJob
from tests.router.simulate.playing import fleet, node, play
from tests.router.simulate.test_late_binding import FirstFree

MODELS = {"a": 2.0, "b": 3.5, "c": 4.5, "d": 8.0}
UNITS = st.integers(1, 40)

nodes = st.builds(
    lambda slots, vram, speed, load: {"slots": slots, "vram_gb": vram, "decode_tps": speed, "load_gbps": load},
    st.integers(1, 4), st.sampled_from([8.0, 10.0, 16.0]), UNITS, st.sampled_from([0.5, 1.0, 4.0]),
)  # fmt: skip
jobs = st.builds(
    lambda t, model, prompt, output, client, talk: TraceJob(
        t=t / 4, model=model, prompt_tokens=prompt * 20, output_tokens=output, client=client, conversation=talk
    ),
    st.integers(0, 200), st.sampled_from(sorted(MODELS)), st.integers(0, 30), st.integers(0, 60),
    st.sampled_from(["x", "y"]), st.sampled_from([None, "t1", "t2"]),
)  # fmt: skip


def a_fleet(described: list[dict[str, float]]) -> Fleet:
    return fleet(*(node(f"n{n}", **one) for n, one in enumerate(described)), **MODELS)


@pytest.mark.parametrize("name", [*POLICIES, "late"])
@settings(max_examples=60, deadline=None)
@given(st.lists(nodes, min_size=1, max_size=4), st.lists(jobs, min_size=1, max_size=40))
def test_every_job_runs_once_in_a_slot_in_order(name: str, described: list[dict[str, float]], made: list[TraceJob]):
    made.sort(key=lambda job: job.t)
    played_on = a_fleet(described)
    policy = FirstFree if name == "late" else name
    specs: dict[str, NodeSpec] = {spec.name: spec for spec in played_on.nodes}

    played = play(played_on, made, policy)

    assert [run.job.arrived_at for run, _ in played.runs] == [job.t for job in made]
    changes: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for (run, where), job in zip(played.runs, made, strict=True):
        spec, size = specs[where], MODELS[job.model]
        assert job.t <= run.bound_at <= run.started_at <= run.ready_at <= run.first_token_at <= run.finished_at
        assert 0 <= run.prefilled_tokens <= job.prompt_tokens
        assert run.prefilled_tokens >= min(1, job.prompt_tokens)
        assert run.first_token_at == pytest.approx(run.ready_at + spec.prefill_s(run.prefilled_tokens, size))
        assert run.finished_at == pytest.approx(run.first_token_at + spec.decode_s(job.output_tokens, size))
        if name == "oracle":
            assert run.ready_at == run.started_at
        changes[where] += [(run.started_at, 1), (run.finished_at, -1)]
    for where, both in changes.items():
        taken = 0
        for _, change in sorted(both):
            taken += change
            assert taken <= specs[where].slots
    assert (played.loads > 0) == (name != "oracle")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(nodes, min_size=1, max_size=3), st.lists(jobs, min_size=1, max_size=40),
    st.sampled_from(["loaded-then-depth", "least-depth", "random"]),
)  # fmt: skip
def test_memory_is_never_overfull_and_busy_models_never_leave(described, made, policy):
    made.sort(key=lambda job: job.t)
    sizes = MODELS
    began = machine.Node.begin_load

    def watched(self: machine.Node, now: float):
        before = set(self.residents)
        load = began(self, now)
        gone = before - set(self.residents)
        assert not any(self.running(model) for model in gone)
        held = sum(sizes[model] for model in self.residents) + (load.size_gb if load else 0)
        if load:
            assert held <= self.spec.vram_gb + 1e-6
            assert self.used_gb == pytest.approx(held)
            assert load.model not in self.residents
        assert self.used_gb <= self.spec.vram_gb + 1e-6
        return load

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine.Node, "begin_load", watched)
        play(a_fleet(described), made, policy)


@settings(max_examples=40, deadline=None)
@given(st.lists(nodes, min_size=1, max_size=3), st.lists(jobs, min_size=1, max_size=40), st.integers(0, 5))
def test_the_same_seed_gives_the_same_report_and_its_figures_agree(described, made, seed):
    made.sort(key=lambda job: job.t)
    first, second = (report(play(a_fleet(described), made, "random", seed)) for _ in range(2))

    assert first == second
    assert first.jobs == len(made) == sum(client.jobs for client in first.clients.values())
    assert first.ttft_p50 <= first.ttft_p95 <= first.ttft_p99 <= first.longest_wait
    assert first.longest_wait == max(client.longest_wait for client in first.clients.values())
    assert 0 < first.jain <= 1.000001
    assert first.makespan >= 0


@settings(max_examples=60, deadline=None)
@given(st.lists(jobs, min_size=1, max_size=40))
def test_one_node_with_one_slot_does_as_much_work_under_the_oracle_in_any_order(made):
    """Conservation: it is busy exactly as long as the jobs take, and idle only when none is there."""
    made.sort(key=lambda job: job.t)
    one = fleet(node("n", vram_gb=20), **MODELS)
    runs = [run for run, _ in play(one, made, "oracle").runs]

    free = 0.0
    for run in runs:  # first come, first served
        assert run.started_at == pytest.approx(max(free, run.job.arrived_at))
        free = run.finished_at
