"""Speeds and answer lengths that are learned, and what is guessed before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.rates import CPU_PRIOR, GPU_PRIOR, REFERENCE_BYTES, Rates

SIZE = int(REFERENCE_BYTES)


def told(rates: Rates, node: str, model: str = "m:1", size: int = SIZE, *, slower: float = 1.0) -> None:
    rates.learn(
        node, model, size,
        new_tokens=1000, prefill_s=slower, output_tokens=100, decode_s=2 * slower, load_s=3 * slower,
    )  # fmt: skip


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_what_is_seen_again_and_again_is_believed_whatever_was_before(before: float, after: float) -> None:
    rates = Rates()
    for _ in range(20):
        told(rates, "n1", slower=before)
    for _ in range(60):
        told(rates, "n1", slower=after)
    speed = rates.speed("n1", "m:1", SIZE)
    assert speed == pytest.approx((after / 1000, after / 50, 3 * after), rel=0.02 + 1e-5 * before / after)


def test_unknown_pairs_are_guessed_by_size_from_the_node_then_the_fleet_then_a_prior() -> None:
    rates = Rates()
    assert rates.speed("n1", "m:1", 2 * SIZE) == pytest.approx([2 * each for each in GPU_PRIOR])
    assert rates.speed("cpu", "m:1", SIZE, cpu=True) == pytest.approx(CPU_PRIOR)
    told(rates, "n1", slower=2.0)
    assert rates.speed("n1", "big:1", 3 * SIZE) == pytest.approx((0.006, 0.12, 18))
    assert rates.speed("n2", "big:1", 3 * SIZE) == pytest.approx((0.006, 0.12, 18))
    told(rates, "n2", "other:1", slower=4.0)
    assert rates.speed("n1", "big:1", 3 * SIZE) == pytest.approx((0.006, 0.12, 18))
    assert rates.speed("n3", "m:1", SIZE) == pytest.approx((0.003, 0.06, 9))
    assert rates.speed("cpu", "m:1", SIZE, cpu=True) == pytest.approx(CPU_PRIOR)  # GPUs say nothing of it


def test_figures_too_small_to_say_something_are_left_out_each_for_itself() -> None:
    rates = Rates()
    rates.learn("n1", "m:1", SIZE, new_tokens=2, prefill_s=5.0, output_tokens=100, decode_s=1.0)
    assert rates.speed("n1", "m:1", SIZE) == pytest.approx((GPU_PRIOR.prefill_s, 0.01, GPU_PRIOR.load_s))


def test_the_pace_of_a_node_is_against_the_fleet() -> None:
    rates = Rates()
    assert rates.pace("n1") == 1.0
    told(rates, "n1", slower=1.0)
    told(rates, "n2", slower=3.0)
    assert rates.pace("n1") == pytest.approx(2.0)
    assert rates.pace("n2") == pytest.approx(2 / 3)


def test_answers_are_as_long_as_this_client_had_them_then_as_the_model_gives_them() -> None:
    rates = Rates()
    assert rates.answer_tokens("ann", "m:1", 0) == 200
    assert rates.answer_tokens("ann", "m:1", 50) == 50
    rates.learn_answer("ben", "m:1", 40)
    assert rates.answer_tokens("ann", "m:1", 0) == 40
    rates.learn_answer("ann", "m:1", 80)
    assert rates.answer_tokens("ann", "m:1", 0) == 80
    assert rates.answer_tokens("ann", "m:1", 30) == 30
    assert rates.answer_tokens("ben", "m:1", 0) == 40
