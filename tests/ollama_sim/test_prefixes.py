"""What of a prompt the engine knows already."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from libs.ollama_sim.prefixes import IdleSlot, Memory, choose_slot, common_prefix, recall, reused_tokens

texts = st.binary(max_size=6) | st.builds(lambda text, times: text * times, st.binary(max_size=3), st.integers(0, 900))
LIMIT = 10_000


@given(texts, texts, texts)
def test_a_common_prefix_is_common_and_the_longest(begin: bytes, one: bytes, other: bytes) -> None:
    one, other = begin + one, begin + other
    found = common_prefix(one, other)

    assert one[:found] == other[:found]
    assert found == min(len(one), len(other)) or one[found] != other[found]


@given(st.integers(0, 5000), texts, texts)
def test_no_more_is_reused_than_the_common_prefix_and_never_all(tokens: int, held: bytes, prompt: bytes) -> None:
    shared = common_prefix(held, prompt)
    reused = reused_tokens(tokens, len(prompt), shared)

    assert 0 <= reused <= max(0, tokens - 1)
    assert reused * len(prompt) <= tokens * shared


def _idle(*held: bytes) -> list[IdleSlot]:
    return [IdleSlot(index, each, rested_since=float(index)) for index, each in enumerate(held)]


@given(st.lists(texts, min_size=1, max_size=5), texts)
def test_the_slot_has_the_longest_prefix_or_rested_longest(held: list[bytes], prompt: bytes) -> None:
    idle = _idle(*held)
    shared = [common_prefix(each, prompt) for each in held]

    chosen = choose_slot(idle, prompt)

    assert chosen == (shared.index(max(shared)) if max(shared) > 0.1 * len(prompt) else 0)


def test_a_tenth_of_the_prompt_is_not_enough() -> None:
    prompt = b"0123456789"

    assert choose_slot(_idle(b"x", b"0"), prompt) == 0
    assert choose_slot(_idle(b"x", b"01"), prompt) == 1


@given(texts, st.lists(texts.filter(bool), max_size=5), texts, st.integers(0, 3000))
def test_recalling_never_loses_what_is_already_shared(
    held: bytes, saved: list[bytes], prompt: bytes, limit: int
) -> None:
    assume(len(saved) < 2 or sum(map(len, saved)) <= limit)
    before = Memory(held, tuple(saved))
    after = recall(before, prompt, limit)

    assert common_prefix(after.held, prompt) >= common_prefix(held, prompt)
    assert after.held in {held, *saved}
    assert set(after.saved) <= {held, *saved}
    if after != before:
        assert len(after.saved) <= 1 or sum(map(len, after.saved)) <= limit


def test_a_conversation_comes_back_from_the_host_memory() -> None:
    first, second = b"first " * 50, b"second " * 50
    interrupted = recall(Memory(first), second, LIMIT)
    back = recall(Memory(second, interrupted.saved), first + b"and on", LIMIT)

    assert interrupted.saved == (first,)
    assert back == Memory(first, (second,))


def test_a_next_turn_is_not_saved_before_it_is_read() -> None:
    turn = b"turn " * 20

    assert recall(Memory(turn), turn + b"next", LIMIT) == Memory(turn)


def test_a_long_text_is_not_taken_out_for_a_small_part_of_itself() -> None:
    long = b"begin" + b"x" * 95
    memory = recall(Memory(b"other", (long,)), b"begin anew", LIMIT)

    assert memory == Memory(b"other", (long, b"other"))


@pytest.mark.parametrize(("limit", "left"), [(0, (b"old",)), (8, (b"old", b"new")), (5, (b"new",)), (1, (b"new",))])
def test_the_oldest_go_first(limit: int, left: tuple[bytes, ...]) -> None:
    assert recall(Memory(b"new", (b"old",)), b"something else", limit).saved == left


def test_nothing_is_saved_twice() -> None:
    assert recall(Memory(b"abc", (b"abcdef",)), b"xyz", LIMIT).saved == (b"abcdef",)
    assert recall(Memory(b"abcdef", (b"abc", b"q")), b"xyz", LIMIT).saved == (b"q", b"abcdef")
