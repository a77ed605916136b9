"""Which prompts a node is believed to hold."""

from hypothesis import given
from hypothesis import strategies as st

from services.router.prefixes import MAX_ENTRIES, NOTHING_FOUND, Prefixes

words = st.lists(st.sampled_from("abc"), max_size=6)


def chain(prompt: list[str]) -> tuple[str, ...]:
    """Ten tokens a word; each hash covers all before it."""
    return tuple(f"{'/'.join(prompt[:n])}:{10 * n}" for n in range(1, len(prompt) + 1))


@given(st.lists(words, max_size=5), words)
def test_a_hit_is_the_longest_prefix_that_was_there_and_never_longer_than_the_prompt(before, prompt) -> None:  # type: ignore[no-untyped-def]
    prefixes = Prefixes()
    for one in before:
        found = prefixes.found("n1", "m:1", chain(one))
        assert prefixes.remember("n1", "m:1", chain(one)) == found
    common = max(
        (n for one in before for n in range(len(prompt) + 1) if one[:n] == prompt[:n] and len(one) >= n), default=0
    )
    assert prefixes.found("n1", "m:1", chain(prompt)).tokens == 10 * common <= 10 * len(prompt)
    for node, model in (("n2", "m:1"), ("n1", "x:1")):
        assert prefixes.found(node, model, chain(prompt)) == NOTHING_FOUND


def test_what_left_memory_is_forgotten() -> None:
    prefixes = Prefixes()
    for node, model in (("n1", "m:1"), ("n1", "x:1"), ("n2", "m:1")):
        prefixes.remember(node, model, ("h:10",))
    prefixes.keep_only("n1", ["x:1"])
    assert [prefixes.found(node, "m:1", ("h:10",)).tokens for node in ("n1", "n2")] == [0, 10]
    assert prefixes.found("n1", "x:1", ("h:10",)).tokens == 10


def test_what_was_not_used_for_long_is_forgotten_first() -> None:
    prefixes = Prefixes()
    prefixes.remember("n1", "m:1", ("old:10",))
    prefixes.remember("n1", "m:1", ("used:10",))
    for n in range(MAX_ENTRIES - 1):
        prefixes.remember("n1", "m:1", (f"h{n}:10",))
        prefixes.remember("n1", "m:1", ("used:10",))
    assert prefixes.found("n1", "m:1", ("old:10",)).tokens == 0
    assert prefixes.found("n1", "m:1", ("used:10",)).tokens == 10


def test_an_entry_without_a_number_counts_for_nothing() -> None:
    prefixes = Prefixes()
    prefixes.remember("n1", "m:1", ("h", "i:x", "j:-3"))
    assert [prefixes.found("n1", "m:1", (entry,)).tokens for entry in ("h", "i:x", "j:-3")] == [0, 0, 0]


def test_it_says_how_many_other_prompts_of_the_model_came_there_since() -> None:
    prefixes = Prefixes()
    prefixes.remember("n1", "m:1", ("system:5", "one:10"))
    assert prefixes.found("n1", "m:1", ("system:5", "one:10", "two:20")) == (10, 0)
    for n in range(3):
        prefixes.remember("n1", "m:1", ("system:5", f"other{n}:10"))
        prefixes.remember("n1", "x:1", ("one:10",))
        prefixes.remember("n2", "m:1", ("one:10",))
    assert prefixes.found("n1", "m:1", ("system:5", "one:10", "two:20")) == (10, 3)
    assert prefixes.found("n1", "m:1", ("system:5", "new:20")) == (5, 0)  # all of them have it
    prefixes.remember("n1", "m:1", ("system:5", "one:10", "two:20"))
    assert prefixes.found("n1", "m:1", ("system:5", "one:10", "else:20")) == (10, 0)
