"""How long a run may be silent (ollama-facts.md §2.5, §3.4, §5.1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.patience import (
    ANSWER_S,
    FIRST_S,
    LOAD_S,
    LOAD_SHARE,
    NEIGHBOUR_S,
    QUIET_ANSWER_S,
    RENDER_S,
    TELLING_S,
    Expected,
    Patience,
    Stage,
    doubt,
    limit_s,
)

OLLAMAS_OWN_STALL_S = 300
BATCH, SLOWEST_TPS = 1024, 20


def test_limits_know_what_a_node_may_be_doing() -> None:
    assert limit_s(Stage.LOAD, Expected()) >= 2 * OLLAMAS_OWN_STALL_S
    assert limit_s(Stage.FIRST, Expected(prompt_tokens=2000)) == FIRST_S + 2000 / SLOWEST_TPS
    assert limit_s(Stage.FIRST, Expected(), others=(400, 0)) == FIRST_S + 400 / SLOWEST_TPS + 2 * NEIGHBOUR_S
    assert limit_s(Stage.ANSWER, Expected()) > BATCH / SLOWEST_TPS  # somebody else's prefill
    assert limit_s(Stage.ANSWER, Expected(quiet=True)) == QUIET_ANSWER_S  # a tool call
    assert limit_s(Stage.RENDER, Expected(prompt_tokens=10**6)) == RENDER_S


def test_a_load_is_waited_for_and_then_the_first_token_and_then_the_next() -> None:
    patience = Patience(Expected(), since=0.0)
    patience.look(500, in_memory=False)
    assert patience.left(500) == LOAD_S - 500
    patience.look(590, in_memory=True)
    assert patience.left(590) == FIRST_S
    patience.heard(700)
    assert patience.left(700) == ANSWER_S
    patience.look(710, in_memory=False)  # in the answer /api/ps has nothing to say any more
    assert (patience.stage, patience.left(710)) == (Stage.ANSWER, ANSWER_S - 10)


def test_a_model_that_is_in_memory_gets_no_time_for_a_load() -> None:
    patience = Patience(Expected(), since=0.0)
    patience.look(0, in_memory=True)
    assert patience.left(0) == FIRST_S
    assert not patience.was_cold


def test_a_model_that_is_loaded_anew_gets_time_for_it_but_only_once() -> None:
    """Other options make Ollama load it again (ollama-facts.md §3.5); coming and going for ever is no progress."""
    patience = Patience(Expected(), since=0.0)
    patience.look(0, in_memory=True)
    patience.look(10, in_memory=False)
    assert patience.left(10) == LOAD_S
    for now in range(100, 700, 50):
        patience.look(now, in_memory=True)
        patience.look(now + 25, in_memory=False)
    assert patience.left(675) < 0
    assert patience.was_cold


def test_while_the_inventory_says_nothing_nothing_changes() -> None:
    patience = Patience(Expected(), since=0.0)
    patience.look(0, in_memory=None)
    assert patience.left(0) == LOAD_S
    patience.look(1, in_memory=True)
    patience.look(2, in_memory=None)
    assert patience.left(2) == FIRST_S - 1


def test_the_question_how_a_prompt_is_rendered_has_its_own_limit() -> None:
    patience = Patience(Expected(renders=True), since=0.0)
    assert patience.left(0) == LOAD_S
    patience.look(5, in_memory=True)
    assert (patience.stage, patience.left(5)) == (Stage.RENDER, RENDER_S)
    patience.rendered(6)
    assert (patience.stage, patience.left(6)) == (Stage.FIRST, FIRST_S)
    patience.look(7, in_memory=False)
    patience.look(8, in_memory=True)
    assert patience.stage is Stage.FIRST


def test_time_in_which_this_process_stood_still_does_not_count() -> None:
    patience = Patience(Expected(), since=0.0)
    patience.look(0, in_memory=False)
    patience.forgive(1000)
    patience.look(1001, in_memory=False)
    assert patience.left(1001) == LOAD_S - 1


def test_a_silence_that_was_cut_short_says_as_much_as_it_is_long() -> None:
    assert TELLING_S > 3.3, "a neighbour's batch (§5.1)"
    for stage in (Stage.RENDER, Stage.FIRST, Stage.ANSWER):
        assert doubt(stage, TELLING_S - 0.1, 1.0) == 0, "people change their minds"
        assert doubt(stage, 10.0, 120.0) == pytest.approx(1 / 12)
    patience = Patience(Expected(prompt_tokens=2000), since=0.0)
    patience.look(0, in_memory=True)
    assert patience.doubt(55, others=(0,)) == 55 / patience.limit((0,)), "a long prompt and a neighbour are a reason"
    patience.forgive(51)
    assert patience.doubt(55) == 0, "this process stood still"
    patience.heard(60)
    assert patience.doubt(64) == 0


def test_loads_that_were_left_early_say_nothing_however_many() -> None:
    """Leaving aborts a load (ollama-facts.md §2.6); a model that takes a minute for it never comes for who waits half of one."""
    assert LOAD_S * LOAD_SHARE >= OLLAMAS_OWN_STALL_S
    assert doubt(Stage.LOAD, OLLAMAS_OWN_STALL_S - 1, LOAD_S) == 0
    assert doubt(Stage.LOAD, OLLAMAS_OWN_STALL_S, LOAD_S) == 1


@given(
    st.integers(0, 200_000),
    st.booleans(),
    st.floats(0.01, 50),
    st.lists(st.tuples(st.floats(0, 100), st.sampled_from([True, False, None])), max_size=30),
    st.lists(st.integers(0, 5000), max_size=4),
)
def test_patience_always_ends_and_scales(tokens, quiet, scale, looks, others) -> None:  # type: ignore[no-untyped-def]
    """Whatever /api/ps says and how often: a run without one sign of life is given up, later with a larger scale."""
    expected = Expected(prompt_tokens=tokens, quiet=quiet)
    patience = Patience(expected, since=0.0, scale=scale)
    now = 0.0
    for step, in_memory in looks:
        now += step
        patience.look(now, in_memory=in_memory)
    assert patience.limit(others) == pytest.approx(scale * limit_s(patience.stage, expected, others))
    longest = scale * (LOAD_S + limit_s(Stage.FIRST, expected, others))
    assert patience.left(now + longest + 1, others) < 0
