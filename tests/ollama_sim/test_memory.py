"""What fits where."""

import asyncio
import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.counters import Counters
from libs.ollama_sim.fault_book import FaultBook
from libs.ollama_sim.memory import (
    KvType,
    default_context,
    kv_bytes,
    must_evict,
    needed_bytes,
    place,
    predicted_bytes,
    prefix_limit,
)
from libs.ollama_sim.models import parse_model
from libs.ollama_sim.options import RunnerOptions
from libs.ollama_sim.pace import Pace
from libs.ollama_sim.runner import RunnerState
from libs.ollama_sim.scheduler import Scheduler

GB = 10**9
GIB = 2**30
SMALL = parse_model("small=2GB:ctx=131072")
EIGHT_B = parse_model("eight=4.9GB:ctx=131072")
LARGE = parse_model("large=40GB:ctx=131072")

sizes = st.integers(0, 10**12)


@given(sizes, sizes, sizes)
def test_a_first_model_is_loaded_whether_it_fits_or_not(predicted: int, used: int, vram: int) -> None:
    assert not must_evict(0, 3, predicted, used, vram)


def test_next_to_another_a_model_must_fit_into_four_fifths_of_what_is_free() -> None:
    assert not must_evict(1, 3, predicted=8, used=10, vram=20)
    assert must_evict(1, 3, predicted=9, used=10, vram=20)


def test_without_a_gpu_only_the_number_counts() -> None:
    assert not must_evict(2, 3, predicted=10**12, used=0, vram=0)
    assert must_evict(3, 3, predicted=1, used=0, vram=0)


def test_memory_grows_with_context_and_slots() -> None:
    assert needed_bytes(SMALL, 4096, 1) < needed_bytes(SMALL, 8192, 1) == needed_bytes(SMALL, 4096, 2)
    assert predicted_bytes(SMALL, 4096, 1) < predicted_bytes(SMALL, 8192, 1) == predicted_bytes(SMALL, 4096, 2)


def test_a_smaller_cache_type_needs_less_but_is_not_predicted() -> None:
    full, half, quarter = (needed_bytes(EIGHT_B, 32768, 1, each) for each in (KvType.F16, KvType.Q8_0, KvType.Q4_0))

    assert full > half > quarter
    assert full - half == pytest.approx(kv_bytes(EIGHT_B, 32768, 1) * (1 - 1.0625 / 2), abs=2)
    assert predicted_bytes(EIGHT_B, 32768, 1) > EIGHT_B.size_bytes + kv_bytes(EIGHT_B, 32768, 1, KvType.F16) - 1


@pytest.mark.parametrize(
    ("context", "gib"),
    [(4096, 0.5), (32768, 4.0), (131072, 16.0)],  # ollama-facts.md §6.3: 8B with grouped-query attention
)
def test_the_cache_of_an_8b_model_is_as_large_as_the_known_one(context: int, gib: float) -> None:
    assert kv_bytes(EIGHT_B, context, 1) / GIB == pytest.approx(gib, rel=0.05)


@pytest.mark.parametrize(
    ("vram", "context"),
    [(0, 4096), (8 * GIB, 4096), (24 * GB, 4096), (24 * GIB, 32768), (47 * GIB, 262144), (80 * GIB, 262144)],
)
def test_the_memory_decides_the_default_context(vram: int, context: int) -> None:
    assert default_context(vram) == context
    assert NodeConfig(vram_bytes=vram).num_ctx == context
    assert NodeConfig(vram_bytes=vram, default_num_ctx=512).num_ctx == 512


def test_a_node_that_says_nothing_of_its_memory_keeps_the_small_context() -> None:
    assert NodeConfig().num_ctx == 4096


@given(sizes, sizes, sizes, st.floats(0, 1))
def test_what_is_on_the_gpu_never_exceeds_its_memory_nor_the_model(
    needed: int, used: int, vram: int, share: float
) -> None:
    placed = place(needed, used, vram, largest_share=share)

    assert 0 <= placed.vram_bytes <= placed.size_bytes == needed
    assert placed.vram_bytes == 0 or used + placed.vram_bytes <= vram
    assert 0 <= placed.gpu_share <= 1


def test_a_large_model_lies_partly_on_the_cpu_and_a_small_one_does_not() -> None:
    assert place(needed_bytes(SMALL, 4096, 1), 0, 24 * GB).gpu_share == 1.0
    assert 0.4 < place(needed_bytes(LARGE, 4096, 1), 0, 24 * GB).gpu_share < 0.6
    assert place(needed_bytes(SMALL, 4096, 1), 0, 0).vram_bytes == 0


def test_saved_prefixes_have_the_size_of_their_keys_and_values() -> None:
    """8 GiB keep about 65,000 tokens of an 8B model."""
    assert prefix_limit(EIGHT_B, 8192, KvType.F16) / 4 == pytest.approx(65_000, rel=0.1)
    assert prefix_limit(EIGHT_B, 0, KvType.F16) == 0


@given(
    vram_gb=st.integers(0, 48),
    model_sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    max_loaded=st.integers(0, 4),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=50, phases=[Phase.generate])  # a hang takes too long to be made smaller
def test_whatever_happens_memory_is_never_overcommitted_and_nobody_loses_the_model_in_use(
    vram_gb: int, model_sizes: list[int], max_loaded: int, seed: int
) -> None:
    asyncio.run(_walk(vram_gb, model_sizes, max_loaded, random.Random(seed)))


async def _walk(vram_gb: int, model_sizes: list[int], max_loaded: int, draws: random.Random) -> None:
    """Requests for any model, with any context, that come and go while the scheduler loads and evicts."""
    models = [parse_model(f"m{index}={size}GB:ctx=131072") for index, size in enumerate(model_sizes)]
    config = NodeConfig(
        models=tuple(models), vram_bytes=vram_gb * GB, max_loaded=max_loaded, is_instant=True, has_bug_17408=False
    )
    scheduler = Scheduler(config, Pace(is_instant=True), FaultBook((), 0), Counters())

    def check() -> None:
        used = sum(runner.placement.vram_bytes for runner in scheduler.runners.values())
        assert used <= vram_gb * GB
        assert len(scheduler.runners) <= config.runner_limit
        for runner in scheduler.runners.values():
            assert runner.users == 0 or runner.state is RunnerState.READY

    async def one() -> None:
        options = RunnerOptions(num_ctx=draws.choice([None, None, 2048, 65536]))
        for _ in range(draws.randrange(20)):
            await asyncio.sleep(0)
        runner = await scheduler.acquire(draws.choice(models), options, None, "/api/chat")
        for _ in range(draws.randrange(10)):
            check()
            assert scheduler.runners[runner.model.blob_id] is runner
            await asyncio.sleep(0)
        scheduler.release(runner)
        check()

    loader = asyncio.create_task(scheduler.run())
    try:
        async with asyncio.timeout(30), asyncio.TaskGroup() as requests:
            for _ in range(25):
                requests.create_task(one())
    finally:
        loader.cancel()
        await asyncio.gather(loader, return_exceptions=True)
