"""Made-up jobs: their load, shape and seed."""

import itertools
from collections import Counter
from random import Random
from statistics import mean, median

import pytest

from libs.common.contracts.requests import Priority
from services.router.simulate.failures import BadInput
from services.router.simulate.fleet import Fleet
from services.router.simulate.trace import TraceJob
from services.router.simulate.workload import WORKLOADS, capacity, make_workload, names
from tests.router.simulate.playing import fleet, node

FLEET = fleet(node("n1", slots=4, decode_tps=80, prefill_tps=3000), node("n2", slots=2), a=4.5, b=9, c=2, d=6)


def made(name: str = "steady", jobs: int = 4000, seed: int = 1, load: float = 0.9, rate: float | None = None):
    return make_workload(name, FLEET, jobs=jobs, seed=seed, load=load, rate=rate)


def work(fleet: Fleet, job: TraceJob) -> float:
    """Slot-seconds per second of the whole fleet."""
    size = fleet.models[job.model].size_gb
    busy = (node.prefill_s(job.prompt_tokens, size) + node.decode_s(job.output_tokens, size) for node in fleet.nodes)
    return 1 / sum(node.slots / seconds for node, seconds in zip(fleet.nodes, busy, strict=True))


@pytest.mark.parametrize("name", names())
def test_jobs_come_in_order_as_many_as_asked_for_and_the_same_with_the_same_seed(name: str):
    jobs = made(name, jobs=501)

    assert len(jobs) == 501
    assert [job.t for job in jobs] == sorted(job.t for job in jobs)
    assert jobs == made(name, jobs=501)
    assert jobs != made(name, jobs=501, seed=2)
    assert all(job.prompt_tokens >= 1 and job.output_tokens >= 1 for job in jobs)
    assert len(made(name, jobs=1)) == 1


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("load", [0.3, 0.9])
def test_the_work_that_arrives_is_the_load(name: str, load: float):
    jobs = made(name, load=load)
    talks = name in ("chat", "mixed")  # the last conversations go on when no new ones begin

    assert sum(work(FLEET, job) for job in jobs) / jobs[-1].t == pytest.approx(load, rel=0.35 if talks else 0.12)


def test_a_rate_is_jobs_per_second():
    assert 4000 / made(rate=2.5)[-1].t == pytest.approx(2.5, rel=0.05)


def test_capacity_is_what_all_slots_do_together():
    one = made(jobs=1)[0]
    drafts, _ = WORKLOADS["steady"](FLEET, 300, Random(1))
    single = [draft._replace(model=one.model, prompt_tokens=300, output_tokens=30) for draft in drafts]
    size = FLEET.models[one.model].size_gb / 4.5

    assert capacity(FLEET, single) == pytest.approx(4 / (size * (0.1 + 30 / 80)) + 2 / (size * (3 + 3)))


def test_popularity_follows_zipf_in_the_order_of_the_fleet_file():
    counts = Counter(job.model for job in made())

    assert counts["a"] / counts["b"] == pytest.approx(2, rel=0.2)
    assert counts["a"] / counts["d"] == pytest.approx(4, rel=0.25)


def test_lengths_are_log_normal_around_their_medians():
    jobs = made()

    assert median(job.prompt_tokens for job in jobs) == pytest.approx(600, rel=0.1)
    assert median(job.output_tokens for job in jobs) == pytest.approx(200, rel=0.1)
    assert mean(job.prompt_tokens for job in jobs) > 700


def variation(jobs: list[TraceJob]) -> float:
    """Of the number of arrivals in windows of some twenty jobs: variance over mean, 1 for Poisson."""
    width = jobs[-1].t / (len(jobs) / 20)
    counts = Counter(int(job.t / width) for job in jobs)
    numbers = [counts[n] for n in range(int(jobs[-1].t / width))]
    middle = mean(numbers)
    return mean((number - middle) ** 2 for number in numbers) / middle


def test_bursts_come_in_bursts():
    assert variation(made("steady")) < 1.7
    assert variation(made("bursts")) > 4


def test_popularity_shifts_and_the_load_does_not():
    uneven = fleet(node("n1", vram_gb=48, slots=4), a=1, b=24, c=2, d=12)
    jobs = make_workload("shift", uneven, jobs=4000, seed=2, load=0.9)
    quarters = [jobs[n * 1000 : (n + 1) * 1000] for n in range(4)]
    favourites = [Counter(job.model for job in quarter).most_common(1)[0][0] for quarter in quarters]
    loads = [sum(work(uneven, job) for job in quarter) / (quarter[-1].t - quarter[0].t) for quarter in quarters]

    assert all(before != after for before, after in itertools.pairwise(favourites))
    assert loads == [pytest.approx(0.9, rel=0.15)] * 4


def test_one_client_of_five_floods_for_a_while():
    jobs = made("flood")
    counts = Counter(job.client for job in jobs)
    flood = [job.t for job in jobs if job.client == "flood"]

    assert len(counts) == 5
    assert counts["flood"] == 2400
    assert jobs[-1].t * 0.08 < flood[0]
    assert flood[-1] < jobs[-1].t * 0.55
    others = [job for job in jobs if job.client != "flood"]
    assert sum(work(FLEET, job) for job in others) / jobs[-1].t < 0.45


def test_turns_of_a_conversation_grow_and_keep_model_and_client():
    talks: dict[object, list[TraceJob]] = {}
    for one in made("chat", jobs=1200):
        talks.setdefault(one.conversation, []).append(one)

    assert 4 < mean(map(len, talks.values())) < 8
    for turns in talks.values():
        assert len({(turn.model, turn.client) for turn in turns}) == 1
        for before, after in itertools.pairwise(turns):
            assert after.prompt_tokens > before.prompt_tokens + before.output_tokens


def test_the_mixed_workload_has_priorities_and_half_of_it_talks():
    jobs = made("mixed")

    assert sum(job.conversation is not None for job in jobs) == 2000
    assert {job.priority for job in jobs} == set(Priority)


def test_an_unknown_workload_is_named_with_those_that_exist():
    with pytest.raises(BadInput, match="no workload 'rush': choose from steady, bursts"):
        made("rush")
