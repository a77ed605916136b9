"""How often models are asked for, while chance and change both move what is seen."""

from collections.abc import Iterator, Mapping
from random import Random

import pytest

from services.router.demand import Demand

USUAL = {"a": 1.0, "b": 0.5, "c": 0.1, "d": 0.05}
OTHER = {"a": 0.1, "b": 0.05, "c": 1.0, "d": 0.5}


def ask(demand: Demand, rates: Mapping[str, float], begin: float, end: float, chance: Random) -> Iterator[float]:
    now, total = begin, sum(rates.values())
    while (now := now + chance.expovariate(total)) < end:
        demand.asked(chance.choices(list(rates), list(rates.values()))[0], now)
        yield now


@pytest.mark.parametrize("seed", range(5))
def test_a_shift_of_popularity_is_believed_within_a_minute(seed: int) -> None:
    demand, chance = Demand(), Random(seed)
    for _ in ask(demand, USUAL, 0.0, 600.0, chance):
        pass
    for _ in ask(demand, OTHER, 600.0, 660.0, chance):
        pass
    assert demand.per_second("a", 660.0) < 0.4
    assert demand.per_second("c", 660.0) > 0.6
    assert demand.per_second("d", 660.0) > demand.per_second("a", 660.0)


@pytest.mark.parametrize("seed", range(5))
def test_what_chance_does_is_no_shift(seed: int) -> None:
    demand, chance = Demand(), Random(seed)
    for now in ask(demand, USUAL, 0.0, 3_000.0, chance):
        if now > 600:
            assert 0.6 < demand.per_second("a", now) < 1.4


@pytest.mark.parametrize("seed", range(5))
def test_a_burst_is_no_shift_however_much_comes_at_once(seed: int) -> None:
    demand, chance = Demand(), Random(seed)
    for _ in ask(demand, USUAL, 0.0, 600.0, chance):
        pass
    for _ in ask(demand, {model: 3 * rate for model, rate in USUAL.items()}, 600.0, 630.0, chance):
        pass
    assert demand.per_second("a", 630.0) < 1.6


def test_a_model_that_nobody_asked_for_since_the_shift_is_still_asked_for() -> None:
    demand = Demand()
    for n in range(600):
        demand.asked("a" if n % 20 else "rare", float(n))
    for n in range(60):
        demand.asked("b", 600.0 + n)
    assert demand.per_second("a", 660.0) < 0.1
    assert 0 < demand.per_second("rare", 660.0) < 0.05
