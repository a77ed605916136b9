"""What waits for a reader: in order, bounded, and its size is that of what is there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common import chunk_queue
from libs.common.chunk_queue import ENTRY_COST, Chunk, ChunkQueue

LIMIT = 800

chunks = st.builds(Chunk, st.integers(1, 4), st.integers(0, 99), st.binary(max_size=300))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), chunks),
        st.tuples(st.just("put_back"), chunks),
        st.tuples(st.just("forget"), st.integers(0, 4)),
        st.tuples(st.just("pop"), st.none()),
    ),
    max_size=60,
)


def cost(waiting: list[Chunk]) -> int:
    return sum(len(chunk.data) + ENTRY_COST for chunk in waiting)


@given(steps)
def test_it_holds_what_came_or_after_too_much_only_the_newest(steps: list[tuple[str, object]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_queue, "MAX_WAITING", LIMIT)
        queue, expected = ChunkQueue(), list[Chunk]()
        for step, value in steps:
            if step == "add":
                assert isinstance(value, Chunk)
                if cost([*expected, value]) > LIMIT:
                    expected.clear()
                expected.append(value)
                queue.add(value)
                assert queue.size <= LIMIT
            elif step == "put_back":
                assert isinstance(value, Chunk)
                expected.insert(0, value)
                queue.put_back(value)
            elif step == "forget":
                assert isinstance(value, int)
                expected = [chunk for chunk in expected if chunk.epoch > value]
                queue.forget(value)
            elif expected:
                assert queue.pop() == expected.pop(0)
            assert (len(queue), queue.size) == (len(expected), cost(expected))
            assert queue.epoch == (expected[0].epoch if expected else 0)
            assert queue.newest == (expected[-1] if expected else None)
