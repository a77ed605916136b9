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
    effective_ctx,
    gpu_limit,
    needs_reload,
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


def test_a_seeing_model_gets_at_least_a_small_context() -> None:
    seeing = msgspec.structs.replace(MODEL, can_see=True)

    assert effective_ctx(seeing, RunnerOptions(num_ctx=512), DEFAULT_CTX) == 2048


@pytest.mark.parametrize(("num_gpu", "share"), [(None, 1.0), (-1, 1.0), (0, 0.0), (5, 0.5), (99, 1.0)])
def test_the_layers_asked_for_bound_what_is_on_the_gpu(num_gpu: int | None, share: float) -> None:
    model = parse_model("m=1.4GB")  # nine blocks and the output layer

    assert gpu_limit(model, RunnerOptions(num_gpu=num_gpu)) == share


def test_zero_tokens_means_one_on_the_native_path_and_no_limit_elsewhere() -> None:
    assert token_limit(0, 256, is_native_chat=True) == 1
    assert token_limit(0, 256, is_native_chat=False) is None


def test_an_answer_ends_after_ten_context_windows() -> None:
    limits = {token_limit(wanted, 256, is_native_chat=True) for wanted in (-1, -2, 10**6)}

    assert limits == {2560}
    assert token_limit(7, 256, is_native_chat=False) == 7


def test_the_engine_rounds_the_context_up() -> None:
    assert [usable_context(wanted) for wanted in (64, 256, 257, 4096)] == [256, 256, 512, 4096]
