"""Jain's index over clients, on cases whose shares are known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.simulate.fairness import Stay, jain, max_min, ratios
from services.router.simulate.report import percentile, report
from tests.router.simulate.playing import fleet, job, node, play


def test_jain_is_one_for_equals_and_one_nth_for_a_monopoly():
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([5, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([]) == 1


def test_max_min_gives_small_demands_all_and_shares_the_rest():
    assert max_min({"a": 1, "b": 5, "c": 9}, 9) == {"a": 1, "b": 4, "c": 4}
    assert max_min({"a": 1, "b": 2}, 9) == {"a": 1, "b": 2}


@given(st.dictionaries(st.text(max_size=2), st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 100))
def test_max_min_shares_what_there_is_and_nobody_envies(demands, capacity):
    shares = max_min(demands, capacity)

    assert sum(shares.values()) == pytest.approx(min(capacity, sum(demands.values())))
    largest = max(shares.values())
    for name, share in shares.items():
        assert share <= demands[name] + 1e-9
        assert share == pytest.approx(demands[name]) or share == pytest.approx(largest)


def test_two_that_take_turns_on_one_slot_are_served_alike():
    # x: 0-10, 20-30; y: 10-20, 30-40; all came at 0. From 30 on y is alone.
    stays = [Stay("x", 0, 0, 10), Stay("y", 0, 10, 20), Stay("x", 0, 20, 30), Stay("y", 0, 30, 40)]

    assert ratios(stays) == pytest.approx({"x": 20 / 15, "y": 20 / 25})


def test_the_one_that_waits_for_all_of_the_other_ones_jobs_is_served_badly():
    # One slot: nine jobs of x and then one of y. Until 90 they share, y gets nothing; then it is alone.
    stays = [Stay("x", 0, n * 10, n * 10 + 10) for n in range(9)] + [Stay("y", 0, 90, 100)]

    assert ratios(stays) == pytest.approx({"x": 90 / 45, "y": 10 / 55})
    assert jain(ratios(stays).values()) < 0.6


def test_who_gets_all_it_asks_for_is_served_fully_although_others_wait():
    # Two slots. x holds one and wants no more; y holds one and has two more waiting: y's share is one.
    stays = [Stay("x", 0, 0, 30), Stay("y", 0, 0, 10), Stay("y", 0, 10, 20), Stay("y", 0, 20, 30)]

    assert ratios(stays) == pytest.approx({"x": 1, "y": 1})


def test_without_waiting_all_is_fair_however_different_the_demands():
    stays = [Stay("x", n, n, n + 50) for n in range(9)] + [Stay("y", 3, 3, 4)]

    assert ratios(stays) == pytest.approx({"x": 1, "y": 1})


def test_who_was_never_there_is_left_out_and_a_job_of_no_length_counts_for_nothing():
    assert ratios([]) == {}
    assert ratios([Stay("x", 1, 1, 1)]) == {}


FLOODED = [job(0, client="flood") for _ in range(60)] + [
    job(1 + 12 * n, client=name) for n in range(5) for name in ("p", "q", "r", "s")
]


def test_first_come_first_served_is_unfair_under_a_flood():
    assert report(play(fleet(node()), sorted(FLOODED, key=lambda job: job.t), "oracle")).jain < 0.6


@pytest.mark.parametrize("slots", [5, 8, 16])
def test_serving_whoever_has_least_is_fair_under_a_flood_as_soon_as_a_slot_is_free(slots: int):
    """The metric's own check: jobs of 10 s, always the client that holds the fewest slots; the flood has 400 at once."""
    quiet = [(3.0 * n, name) for n in range(60) for name in ("p", "q", "r", "s") if n % 4 == "pqrs".index(name)]
    waiting = sorted([(0.0, "flood")] * 400 + quiet)
    free = [0.0] * slots
    held: list[tuple[str, float]] = []
    stays = []
    while waiting:
        free.sort()
        now = max(free[0], waiting[0][0])
        held = [one for one in held if one[1] > now]
        here = [entry for entry in waiting if entry[0] <= now]
        chosen = min(here, key=lambda entry: (sum(name == entry[1] for name, _ in held), entry[0]))
        waiting.remove(chosen)
        free[0] = now + 10
        held.append((chosen[1], now + 10))
        stays.append(Stay(chosen[1], chosen[0], now, now + 10))

    assert jain(ratios(stays).values()) > 0.95


def test_a_report_by_hand():
    # On one node: 5.5, 7.5 - 1, 9.5 - 2 s to the first token; the last ends at 10.5.
    made = report(play(fleet(node()), [job(0, client="x"), job(1, client="y"), job(2, client="x")]))

    assert (made.jobs, made.ttft_p50, made.ttft_mean, made.longest_wait) == (3, 6.5, 6.5, 7.5)
    assert (made.ttft_p95, made.ttft_p99) == (7.4, 7.48)
    assert made.makespan == 10.5
    assert made.loads_per_1000 == pytest.approx(333.333333)
    assert made.clients["x"].jobs == 2
    assert made.clients["x"].ttft_p95 == pytest.approx(5.5 + 0.95 * 2)
    assert made.clients["y"].longest_wait == 6.5


def test_makespan_begins_with_the_first_arrival():
    assert report(play(fleet(node()), [job(100)])).makespan == 6.5


def test_percentiles_lie_between_neighbours():
    assert percentile([1.0], 99) == 1
    assert percentile([1.0, 3.0], 50) == 2
    assert percentile(list(map(float, range(101))), 95) == 95
