"""What a model needs, and who leaves for it (ollama-facts.md §6)."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.vram import GIB, need, victims

held = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10), max_size=6)


@given(held, st.integers(0, 30), st.integers(0, 30), st.sets(st.sampled_from("abcdef")), st.randoms())
def test_those_who_leave_may_and_have_to_and_what_comes_fits(held, wanted, capacity, may, chance) -> None:  # type: ignore[no-untyped-def]
    removable = [model for model in held if model in may]
    prices = {model: chance.randint(0, 3) for model in held}
    leaving = victims(wanted, capacity, held, removable, prices.__getitem__)

    def fits(gone: tuple[str, ...]) -> bool:
        return wanted + sum(held.values()) - sum(held[model] for model in gone) <= capacity

    if leaving is None:
        assert not fits(tuple(removable))
        return
    assert fits(leaving)
    assert len(set(leaving)) == len(leaving)
    assert set(leaving) <= set(removable)
    for fewer in itertools.combinations(leaving, max(0, len(leaving) - 1)):
        assert not leaving or not fits(fewer)
    assert victims(wanted, capacity, held, reversed(removable), prices.__getitem__) == leaving


def test_the_cheapest_leaves() -> None:
    sizes = {"a": 4, "b": 4, "c": 4}
    assert victims(4, 12, sizes, sizes, {"a": 3.0, "b": 1.0, "c": 2.0}.__getitem__) == ("b",)
    assert victims(8, 12, sizes, sizes, {"a": 3.0, "b": 1.0, "c": 2.0}.__getitem__) == ("b", "c")


def test_without_a_known_capacity_ollama_decides() -> None:
    assert victims(99, None, {"a": 1}, ["a"], lambda _: 0.0) == ()


@pytest.mark.parametrize(("size", "per_token_kib"), [(2.0e9, 112), (4.9e9, 128), (42.5e9, 320)])
def test_the_cache_of_a_context_is_about_what_ollama_takes(size: float, per_token_kib: int) -> None:
    """ollama-facts.md §6.3."""
    per_token = (need(int(size), 104_000) - need(int(size), 4_000)) / 100_000 / 1024
    assert per_token == pytest.approx(per_token_kib, rel=0.17)


def test_a_need_grows_with_size_and_context_and_is_nothing_when_the_size_is_not_known() -> None:
    assert need(0, 4096) == 0
    assert need(int(4.9e9), None) == need(int(4.9e9), 4096)
    assert 5 * GIB < need(int(4.9e9), None) < 7 * GIB
