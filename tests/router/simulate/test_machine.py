"""One node by hand: loads, slots, memory, the prompt cache. 4.5 s for a load, 1 s of prefill and 1 s of decode (playing.py)."""

import pytest

from services.router.simulate.fleet import Fleet
from tests.router.simulate.playing import first_tokens, fleet, job, node, play


def test_the_first_token_comes_after_load_and_prefill_and_a_loaded_model_needs_no_load():
    played = play(fleet(node()), [job(1), job(20)])

    assert first_tokens(played) == [1 + 4.5 + 1, 21]
    assert [run.finished_at for run, _ in played.runs] == [7.5, 22]
    assert played.loads == 1


def test_load_prefill_and_decode_grow_with_the_size_of_the_model():
    played = play(fleet(node(), a=9.0), [job(0)])

    assert first_tokens(played) == [9 + 2]
    assert played.runs[0][0].finished_at == 9 + 2 + 2


def test_jobs_wait_for_a_slot_in_the_order_of_their_arrival():
    assert first_tokens(play(fleet(node()), [job(0), job(1), job(1.5)])) == [5.5, 7.5, 9.5]


def test_two_slots_run_two_jobs_at_once():
    assert first_tokens(play(fleet(node(slots=2)), [job(0), job(1), job(1.5)])) == [5.5, 5.5, 7.5]


def test_a_job_for_a_model_that_is_being_loaded_joins_the_load():
    played = play(fleet(node(slots=2)), [job(0), job(4, prompt=200)])

    assert first_tokens(played) == [5.5, 6.5]
    assert played.loads == 1


def test_a_second_cold_model_loads_behind_the_first_and_a_third_job_joins_it_there():
    played = play(fleet(node(slots=3)), [job(0, "a"), job(1, "b"), job(2, "b")])

    assert first_tokens(played) == [5.5, 10, 10]
    assert played.loads == 2


def test_a_load_waits_until_the_victim_is_idle():
    # b wants a's memory; a runs until 6.5 although b has its slot since 1.
    played = play(fleet(node(slots=2, vram_gb=8)), [job(0, "a"), job(1, "b")])

    assert first_tokens(played) == [5.5, 6.5 + 4.5 + 1]


def test_jobs_of_a_loaded_model_pass_a_load_that_waits_for_room():
    # a is in memory and busy until 6.5; b waits for room; another job of a comes and holds it until 7.5.
    played = play(fleet(node(slots=3, vram_gb=8)), [job(0, "a"), job(1, "b"), job(5.5, "a")])

    assert first_tokens(played) == [5.5, 7.5 + 4.5 + 1, 6.5]


def test_the_least_recently_used_idle_model_leaves():
    # Room for two. a is used again after b, so c takes b's place, and a is still there.
    jobs = [job(0, "a"), job(20, "b"), job(40, "a"), job(60, "c"), job(80, "a"), job(100, "b")]
    played = play(fleet(node()), jobs)

    assert first_tokens(played) == [5.5, 25.5, 41, 65.5, 81, 105.5]
    assert played.loads == 4


def test_what_counts_is_when_the_last_job_of_a_model_ended():
    # a begins before b and ends after it: c takes b's place.
    jobs = [job(0, "a", output=300), job(10, "b"), job(60, "c"), job(80, "a")]

    assert first_tokens(play(fleet(node(slots=2)), jobs)) == [5.5, 15.5, 65.5, 81]


def test_a_waiting_load_gets_the_room_before_a_queued_job_of_the_model_that_leaves():
    # Both slots taken, b waits for a's memory, another job of a for a slot: a leaves at 6.5 and is loaded again behind b.
    played = play(fleet(node(slots=2, vram_gb=8)), [job(0, "a"), job(1, "b"), job(2, "a")])

    assert first_tokens(played) == [5.5, 12, 13 + 4.5 + 1]


def test_a_busy_model_does_not_leave_though_it_was_used_longest_ago():
    # a answers until 105.5; c needs room at 30: b, used later, but idle, leaves.
    jobs = [job(0, "a", output=1000), job(10, "b"), job(30, "c"), job(200, "a"), job(220, "b")]
    played = play(fleet(node(slots=2)), jobs)

    assert first_tokens(played) == [5.5, 15.5, 35.5, 201, 225.5]


@pytest.mark.parametrize("vram_gb", [9.0, 9.9])
def test_what_fits_beside_each_other_stays(vram_gb: float):
    assert play(fleet(node(vram_gb=vram_gb)), [job(0, "a"), job(20, "b"), job(40, "a")]).loads == 2


def test_a_large_model_takes_the_place_of_several():
    played = play(fleet(node(), a=4.5, b=4.5, big=9), [job(0, "a"), job(20, "b"), job(40, "big"), job(80, "a")])

    assert first_tokens(played) == [5.5, 25.5, 40 + 9 + 2, 85.5]


def talk(t: float, name: str | None, **more: int):
    return job(t, conversation=name, **more)


def cached(fleet: Fleet, *jobs) -> list[int]:
    """Prompt tokens that each job did not have to be read for."""
    return [run.job.prompt_tokens - run.prefilled_tokens for run, _ in play(fleet, jobs).runs]


def test_a_conversation_finds_what_the_node_has_seen_of_it():
    turns = (talk(0, "x"), talk(20, "x", prompt=200), talk(40, "x", prompt=300))

    assert cached(fleet(node()), *turns) == [0, 110, 210]
    assert first_tokens(play(fleet(node()), turns)) == [5.5, 20.9, 40.9]


def test_at_least_one_token_of_the_prompt_is_read():
    assert cached(fleet(node()), talk(0, "x"), talk(20, "x"), talk(40, "x", prompt=1), talk(60, "x", prompt=0)) == [
        0, 99, 0, 0,
    ]  # fmt: skip


def test_jobs_without_a_conversation_share_nothing():
    assert cached(fleet(node()), talk(0, None), talk(20, None)) == [0, 0]


@pytest.mark.parametrize("other", ["y", None])
def test_a_slot_remembers_the_last_conversation_alone(other: str | None):
    assert cached(fleet(node()), talk(0, "x"), talk(20, other), talk(40, "x", prompt=200)) == [0, 0, 0]


def test_each_slot_remembers_a_conversation_and_the_right_one_is_taken():
    turns = talk(0, "x"), talk(0, "y"), talk(20, "y", prompt=200), talk(20, "x", prompt=200)

    assert cached(fleet(node(slots=2)), *turns) == [0, 0, 110, 110]


def test_a_conversation_prefers_its_slot_to_one_that_remembers_nothing():
    assert cached(fleet(node(slots=2)), talk(0, "x"), talk(20, "x", prompt=200)) == [0, 110]


def test_a_new_conversation_spares_the_slot_with_the_newer_memory():
    begun = talk(0, "x"), talk(0, "y")
    for newer in ("x", "y"):
        turns = *begun, talk(20, newer, prompt=200), talk(40, "z"), talk(60, newer, prompt=300)
        assert cached(fleet(node(slots=2)), *turns)[-1] == 210


def test_a_model_that_left_memory_has_forgotten_its_conversations():
    turns = talk(0, "x"), job(20, "b"), talk(40, "x", prompt=200)

    assert cached(fleet(node(vram_gb=8)), *turns) == [0, 0, 0]
    assert cached(fleet(node(vram_gb=9)), *turns) == [0, 0, 110]


def test_models_remember_apart_in_the_same_slot():
    turns = talk(0, "x"), job(20, "b", conversation="x"), talk(40, "x", prompt=200)

    assert cached(fleet(node()), *turns) == [0, 0, 110]
