"""JSON of every kind, for fuzzing the parsers: structure that nearly fits is what finds mistakes."""

from typing import Any

from hypothesis import strategies as st

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "tool", "text", "json", "json_schema", "function", "auto", "high", "batch"])
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def objects(fields: list[str], likely: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """`likely` mostly as it stands, with some fields of `fields` set to anything, one perhaps removed."""
    changes = st.dictionaries(st.sampled_from(fields) | st.text(max_size=6), VALUES, max_size=4)
    dropped = st.sampled_from([None, None, *likely])
    return st.builds(lambda changed, gone: {k: v for k, v in (likely | changed).items() if k != gone}, changes, dropped)
