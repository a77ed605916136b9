"""Streamed bodies as events: held against every recording of a real Ollama, cut in every way."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.contracts.events import Event, decode_event, line
from services.worker import lines as lines_module
from services.worker.endings import Broke, Ending, Finished
from services.worker.lines import Lines
from tests.worker.recorded import ALL, STREAMS, Said, is_whole, lines_of, said_in

TEXT_FIELDS = {"message", "response", "thinking", "tool_calls", "logprobs"}


def read(*pieces: bytes) -> tuple[list[Event], Ending]:
    reader = Lines()
    events = [event for piece in pieces for event in reader.feed(piece)]
    events += reader.close()
    assert reader.ending is not None
    return events, reader.ending


def said(events: list[Event]) -> Said:
    return Said(
        "".join(event.text or "" for event in events),
        "".join(event.thinking or "" for event in events),
        [json.loads(bytes(event.tool_call)) for event in events if event.tool_call],
        [each for event in events if event.logprobs for each in json.loads(bytes(event.logprobs))],
    )


def pieces_of(body: bytes, cuts: list[int]) -> list[bytes]:
    ends = [*sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [body[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def token(text: str, **more: Any) -> bytes:
    return json.dumps({"message": {"role": "assistant", "content": text}, "done": False, **more}).encode() + b"\n"


DONE = b'{"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","eval_count":3}\n'


def test_there_are_recordings_of_all_kinds() -> None:
    """An empty parametrization would pass for nothing."""
    together = [said_in(ALL[name]) for name in STREAMS]
    assert len(STREAMS) > 50
    assert any(each.thinking for each in together)
    assert any(each.tool_calls for each in together)
    assert any(each.logprobs for each in together)
    assert any(not each.text.isascii() for each in together)
    assert {"kill-child-chat-stream", "sigkill-ollama-chat-stream"} <= {n for n in STREAMS if not is_whole(n)}


@pytest.mark.parametrize("name", STREAMS)
def test_the_events_of_a_recording_hold_all_of_its_text_and_nothing_else(name: str) -> None:
    """Both shapes of tool calls, thinking, logprobs and characters beyond ASCII; one thing an event."""
    events, _ = read(ALL[name].reply.body)
    assert said(events) == said_in(ALL[name])
    for event in events:
        things = [
            event.text is not None,
            event.thinking is not None,
            event.tool_call,
            event.data,
            event.end is not None,
        ]
        assert sum(map(bool, things)) == 1
        assert decode_event(line(event)) == event


@pytest.mark.parametrize("name", STREAMS)
def test_only_the_terminal_marker_makes_an_answer_whole(name: str) -> None:
    """Crashes and closed connections end as broken, whatever text came before (DESIGN §3)."""
    _, ending = read(ALL[name].reply.body)
    assert isinstance(ending, Finished if is_whole(name) else Broke)


@pytest.mark.parametrize("name", [name for name in STREAMS if is_whole(name)])
def test_the_final_object_keeps_all_fields_of_ollama_but_the_text(name: str) -> None:
    _, ending = read(ALL[name].reply.body)
    last = lines_of(ALL[name])[-1]
    assert isinstance(ending, Finished)
    assert ending.final == {field: value for field, value in last.items() if field not in TEXT_FIELDS}
    assert ending.final["done"] is True


@pytest.mark.parametrize("name", STREAMS)
@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 1 << 30), max_size=60))
def test_where_the_network_cuts_a_body_changes_nothing(name: str, cuts: list[int]) -> None:
    body = ALL[name].reply.body
    assert read(*pieces_of(body, cuts)) == read(body)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=8),
    cuts=st.lists(st.integers(0, 1 << 20), max_size=20),
    is_done=st.booleans(),
)
def test_any_text_survives_any_cut(texts: list[str], cuts: list[int], is_done: bool) -> None:
    body = b"".join(map(token, texts)) + (DONE if is_done else b"")
    events, ending = read(*pieces_of(body, cuts))
    assert [event.text for event in events] == texts
    assert isinstance(ending, Finished if is_done else Broke)


@pytest.mark.parametrize("name", ["chat-stream", "chat-tools-native", "chat-think-stream"])
def test_a_body_cut_short_anywhere_before_its_last_line_is_broken(name: str) -> None:
    body = ALL[name].reply.body
    last_line = body[:-1].rfind(b"\n") + 1
    for end in [*range(0, last_line, 97), last_line, last_line + 1, len(body) - 2]:
        assert isinstance(read(body[:end])[1], Broke), end


def test_what_came_before_an_error_line_counts_even_in_the_same_read() -> None:
    """The clients of a crashed answer keep what the node had said."""
    events, ending = read(token("Hel") + token("lo") + b'{"error":"the engine died"}\n' + token("never"))
    assert [event.text for event in events] == ["Hel", "lo"]
    assert ending == Broke("the engine died")


def test_nothing_counts_after_the_final_line() -> None:
    reader = Lines()
    reader.feed(token("a") + DONE + token("b"))
    assert reader.feed(token("c")) == []
    assert reader.feed(b'{"error":"late"}\n') == []
    assert reader.close() == []
    assert isinstance(reader.ending, Finished)


def test_a_last_line_without_its_line_end_counts() -> None:
    """Load-only requests answer with one object and no line end (ollama-facts.md §1.8)."""
    events, ending = read(b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}')
    assert events == []
    assert ending == Finished({"model": "m", "done": True, "done_reason": "load"})


@pytest.mark.parametrize(
    "body",
    [
        b"<html>\n<body>hello</body>\n",
        b"[]\n",
        b"null\n",
        b'"text"\n',
        b'{"message":"text"}\n',
        b"\xff\xfe\n",
        b'{"a":\n',
    ],
)
def test_what_is_not_ollamas_breaks_the_stream_without_quoting_it(body: bytes) -> None:
    """Texts of faults travel to clients and logs: they never quote what the node sent (DESIGN §7.7)."""
    events, ending = read(token("x"), body)
    assert [event.text for event in events] == ["x"]
    assert ending == Broke("the node sent a line that is not Ollama's")


def test_empty_bodies_and_empty_lines_are_no_answer() -> None:
    assert read() == ([], Broke("the node's stream ended without its final line"))
    assert read(b"\n\n \n") == ([], Broke("the node's stream ended without its final line"))


def test_a_line_without_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE", 1000)
    reader = Lines()
    for _ in range(11):
        assert reader.feed(b"x" * 100) == []
    assert isinstance(reader.ending, Broke)


def test_logprobs_without_text_are_not_lost() -> None:
    """A token whose text is held back until its character is complete still has its probabilities."""
    events, _ = read(token("", logprobs=[{"token": "x", "logprob": -1.0}]) + DONE)
    assert said(events).logprobs == [{"token": "x", "logprob": -1.0}]
    assert events[0].text == ""
