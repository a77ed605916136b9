"""Reading server-sent events, however they are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.cli.sse import ServerEvent, SseReader

STREAM = (
    "\ufeff: a comment\n\nevent: queued\ndata: {}\nid: 1.0\n\n"
    'event: token\r\ndata: {"text":"Grüß"}\r\nid: 1.20\r\n\r\ndata:two\rdata: lines\r\rretry: 5\nid\n\nevent: token\ndata\n\n'
)
EVENTS = [
    ServerEvent("queued", "{}", "1.0"),
    ServerEvent("token", '{"text":"Grüß"}', "1.20"),
    ServerEvent("message", "two\nlines", "1.20"),
    ServerEvent("token", "", ""),
]


def test_events_are_read_as_the_standard_says():
    assert SseReader().feed(STREAM.encode()) == EVENTS


@given(st.lists(st.integers(0, len(STREAM.encode())), max_size=20))
def test_the_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]):
    content, reader = STREAM.encode(), SseReader()
    bounds = [0, *sorted(cuts), len(content)]

    found = [event for start, end in itertools.pairwise(bounds) for event in reader.feed(content[start:end])]

    assert found == EVENTS


@pytest.mark.parametrize("content", [b"data: unfinished", b"data: x\n", b"\n\n\n", b"event: empty\n\n"])
def test_what_is_not_finished_is_no_event(content: bytes):
    assert SseReader().feed(content) == []
