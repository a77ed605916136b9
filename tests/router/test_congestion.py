"""How many jobs wait, with the holders of all models seen together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.congestion import MOST, Class, Nodes, waiting
from services.router.replicas import survey

FOUR = [2.0] * 4


def held(loads: list[float], nodes: list[int], slots: list[float] = FOUR) -> float:
    """Jobs of 5 s; all nodes equally busy."""
    busy = min(1.0, sum(loads) / sum(slots))
    classes = [Class(each, load, load / 5.0) for each, load in zip(nodes, loads, strict=True)]
    return waiting(classes, Nodes(slots), [busy * each for each in slots])


def test_one_model_everywhere_is_one_queue_before_all_slots() -> None:
    for busy in (0.3, 0.6, 0.9):
        assert held([busy * 8], [0b1111]) == pytest.approx(busy ** ((2 * 9) ** 0.5) / (1 - busy))
    assert held([], []) == 0.0


def test_models_that_overlap_in_a_ring_wait_less_than_those_in_pairs() -> None:
    """Every model has two nodes and every node is as busy as the others: only who shares with whom differs."""
    ring, pairs = [0b0011, 0b0110, 0b1100, 0b1001], [0b0011, 0b0011, 0b1100, 0b1100]
    assert held([1.8] * 4, [0b1111] * 4) < 0.9 * held([1.8] * 4, ring) < 0.8 * held([1.8] * 4, pairs)

    def surveyed(nodes: list[int]) -> float:
        names = [f"n{n}" for n in range(4)]
        holders = {str(m): frozenset(names[n] for n in range(4) if each >> n & 1) for m, each in enumerate(nodes)}
        models = list(holders)
        return survey(
            dict.fromkeys(models, 1.8), dict.fromkeys(models, 5.0), dict.fromkeys(names, 2.0), holders
        ).waiting()

    assert surveyed([0b1111] * 4) < 0.9 * surveyed(ring) < 0.8 * surveyed(pairs)


def test_two_models_that_together_have_too_few_nodes_are_seen_although_each_alone_has_enough() -> None:
    """Three models share the same two nodes, each could be served there alone."""
    crowded = held([1.5, 1.5, 0.9, 2.0], [0b0011, 0b0011, 0b0011, 0b1100])
    assert crowded > 3 * held([1.5, 1.5, 0.9, 2.0], [0b0011, 0b0011, 0b0110, 0b1100])


def test_what_is_only_guessed_takes_the_edge_off() -> None:
    sure, guessed = (waiting([Class(1, 1.9, 0.4, doubt)], Nodes([2.0]), [1.9]) for doubt in (0.0, 0.04))
    assert guessed < 0.7 * sure
    sure, guessed = (waiting([Class(1, 1.0, 0.2, doubt)], Nodes([2.0]), [1.0]) for doubt in (0.0, 0.01))
    assert guessed == pytest.approx(sure, rel=0.05)


def test_more_classes_than_are_told_apart_are_counted_nearly_as_they_are() -> None:
    one_by_one = held([0.5] * MOST, [0b1111] * (MOST // 2) + [0b0111] * (MOST // 2))
    split = [0.25] * 2 * MOST
    assert held(split, [0b1111] * MOST + [0b0111] * MOST) == pytest.approx(one_by_one)
    rare = held([0.5] * MOST + [1e-6] * 5, [1 << n % 4 | 1 << n // 2 % 4 for n in range(MOST)] + [1, 2, 4, 8, 5])
    assert rare == pytest.approx(held([0.5] * MOST, [1 << n % 4 | 1 << n // 2 % 4 for n in range(MOST)]), rel=0.01)


sets = st.lists(st.integers(1, 15), min_size=1, max_size=MOST, unique=True)


@given(sets, st.floats(0.05, 0.9), st.floats(1.0, 1.5))
def test_more_load_waits_longer_and_no_placement_is_better_than_everything_everywhere(nodes, busy, more) -> None:  # type: ignore[no-untyped-def]
    """One model more on a node may well do harm: first come, first served, it takes slots of those who have no other."""
    loads = [busy * 8 / len(nodes)] * len(nodes)
    assert held(loads, nodes) <= held([more * load for load in loads], nodes) * (1 + 1e-9)
    assert held(loads, [15] * len(nodes)) <= held(loads, nodes) * (1 + 1e-9)
