"""How fast a model runs, by size and place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.models import parse_model
from libs.ollama_sim.rates import REFERENCE_BYTES, Rates, decode_share, rates_of

GPU, CPU = Rates(100.0, 2000.0), Rates(10.0, 50.0)


def test_rates_hold_for_the_reference_size_and_fall_as_the_size_grows() -> None:
    same, twice = rates_of(REFERENCE_BYTES, 1.0, GPU, CPU), rates_of(2 * REFERENCE_BYTES, 1.0, GPU, CPU)

    assert (same.decode_tps, same.prefill_tps) == pytest.approx((100.0, 2000.0))
    assert (twice.decode_tps, twice.prefill_tps) == pytest.approx((50.0, 1000.0))


def test_half_a_model_on_the_cpu_costs_nearly_all_of_the_speed() -> None:
    mixed = rates_of(REFERENCE_BYTES, 0.5, GPU, CPU)

    assert mixed.decode_tps == pytest.approx(2 / (1 / 100 + 1 / 10))
    assert mixed.prefill_tps == pytest.approx(2 / (1 / 2000 + 1 / 50))
    assert rates_of(REFERENCE_BYTES, 0.0, GPU, CPU).decode_tps == pytest.approx(10.0)


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_on_the_gpu_is_never_slower(one: float, other: float) -> None:
    less, more = sorted((one, other))

    assert rates_of(1, less, GPU, CPU).decode_tps <= rates_of(1, more, GPU, CPU).decode_tps * (1 + 1e-9)


def test_without_a_described_machine_every_model_runs_at_the_given_rates() -> None:
    plain, described = NodeConfig(), NodeConfig(vram_bytes=24 * 10**9)
    model = parse_model("m=9GB")

    assert plain.rates_of(model, 0.1) == Rates(60.0, 2000.0)
    assert described.rates_of(model, 1.0).decode_tps == pytest.approx(30.0)


@given(st.integers(1, 32))
def test_more_slots_give_more_in_total_and_less_to_each(busy: int) -> None:
    assert decode_share(busy + 1) <= decode_share(busy)
    assert decode_share(busy + 1) * (busy + 1) >= decode_share(busy) * busy - 1e-9
