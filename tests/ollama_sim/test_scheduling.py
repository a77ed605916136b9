"""The scheduler's decisions."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.ollama_sim.models import parse_model
from libs.ollama_sim.options import RunnerOptions, token_limit, usable_context
from libs.ollama_sim.scheduling import (
    Resident,
    choose_victim,
    decode_share,
    effective_ctx,
    must_evict,
    needs_reload,
    size_in_memory,
)

MODEL = parse_model("m=2GB:ctx=8192")
DEFAULT_CTX = 4096

residents = st.lists(
    st.builds(
        Resident,
        blob_id=st.text(max_size=3),
        keep_alive_s=st.sampled_from([0.0, 60.0, 300.0, float("inf")]),
        is_idle=st.booleans(),
    ),
    min_size=1,
    unique_by=lambda each: each.blob_id,
)
runner_options = st.builds(
    RunnerOptions,
    num_ctx=st.none() | st.sampled_from([2048, 4096, 8192, 16384]),
    num_gpu=st.none() | st.integers(-1, 2),
    num_batch=st.none() | st.just(512),
    does_shift=st.booleans(),
)


@given(residents)
def test_the_victim_is_idle_if_any_is_and_has_the_shortest_keep_alive_among_its_kind(present: list[Resident]) -> None:
    victim = choose_victim(present)

    same_kind = [each for each in present if each.is_idle == victim.is_idle]
    assert victim.is_idle or not any(each.is_idle for each in present)
    assert victim == min(same_kind, key=lambda each: (each.keep_alive_s, each.blob_id))


@given(residents)
def test_the_order_of_residents_does_not_matter(present: list[Resident]) -> None:
    assert choose_victim(present) == choose_victim(present[::-1])


def test_a_busy_model_is_the_victim_when_all_are_busy() -> None:
    pinned = Resident("a", float("inf"), is_idle=False)
    short = Resident("b", 60.0, is_idle=False)

    assert choose_victim([pinned, short]) == short


@given(runner_options)
def test_the_same_options_never_reload(options: RunnerOptions) -> None:
    assert not needs_reload(options, options, MODEL, DEFAULT_CTX)


@given(runner_options)
def test_leaving_options_out_reloads_only_for_the_context_the_shift_and_the_batch(loaded: RunnerOptions) -> None:
    expected = (
        not loaded.does_shift
        or effective_ctx(MODEL, loaded, DEFAULT_CTX) != DEFAULT_CTX
        or loaded.num_batch is not None
    )
    assert needs_reload(loaded, RunnerOptions(), MODEL, DEFAULT_CTX) == expected


@pytest.mark.parametrize(
    ("loaded", "wanted", "reloads"),
    [
        (RunnerOptions(num_ctx=16384), RunnerOptions(num_ctx=8192), False),  # both are what the model was trained with
        (RunnerOptions(num_ctx=8192), RunnerOptions(), True),
        (RunnerOptions(num_ctx=4096), RunnerOptions(), False),
        (RunnerOptions(), RunnerOptions(num_gpu=-1), False),
        (RunnerOptions(), RunnerOptions(num_gpu=0), True),
        (RunnerOptions(), RunnerOptions(does_shift=False), True),
    ],
)
def test_needs_reload(loaded: RunnerOptions, wanted: RunnerOptions, reloads: bool) -> None:
    assert needs_reload(loaded, wanted, MODEL, DEFAULT_CTX) is reloads


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_first_model_is_loaded_whether_it_fits_or_not(needed: int, used: int, vram: int) -> None:
    assert not must_evict(0, 3, needed, used, vram)


def test_next_to_another_a_model_must_fit_into_four_fifths_of_what_is_free() -> None:
    assert not must_evict(1, 3, needed_bytes=8, used_bytes=10, vram_bytes=20)
    assert must_evict(1, 3, needed_bytes=9, used_bytes=10, vram_bytes=20)


def test_without_a_gpu_only_the_number_counts() -> None:
    assert not must_evict(2, 3, needed_bytes=10**12, used_bytes=0, vram_bytes=0)
    assert must_evict(3, 3, needed_bytes=1, used_bytes=0, vram_bytes=0)


def test_memory_grows_with_context_and_slots() -> None:
    assert size_in_memory(MODEL, 4096, 1) < size_in_memory(MODEL, 8192, 1) == size_in_memory(MODEL, 4096, 2)


def test_a_seeing_model_gets_at_least_a_small_context() -> None:
    seeing = msgspec.structs.replace(MODEL, can_see=True)

    assert effective_ctx(seeing, RunnerOptions(num_ctx=512), DEFAULT_CTX) == 2048


@given(st.integers(1, 32))
def test_more_slots_give_more_in_total_and_less_to_each(busy: int) -> None:
    assert decode_share(busy + 1) <= decode_share(busy)
    assert decode_share(busy + 1) * (busy + 1) >= decode_share(busy) * busy - 1e-9


def test_zero_tokens_means_one_on_the_native_path_and_no_limit_elsewhere() -> None:
    assert token_limit(0, 256, is_native_chat=True) == 1
    assert token_limit(0, 256, is_native_chat=False) is None


def test_an_answer_ends_after_ten_context_windows() -> None:
    limits = {token_limit(wanted, 256, is_native_chat=True) for wanted in (-1, -2, 10**6)}

    assert limits == {2560}
    assert token_limit(7, 256, is_native_chat=False) == 7


def test_the_engine_rounds_the_context_up() -> None:
    assert [usable_context(wanted) for wanted in (64, 256, 257, 4096)] == [256, 256, 512, 4096]
