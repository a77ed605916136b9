"""One log event is one server-sent event; the bytes do not depend on how the log arrived."""

from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.events import End, Event, Position, decode_event, line, parse_position
from libs.common.contracts.faults import Code, Fault
from libs.common.states import JobState
from services.gateway.sse import data_frame, log_frames, state_frame
from tests.common.test_folding import EVENTS
from tests.support.clients import parse_sse

FINAL_STATES = st.sampled_from([state for state in JobState if state.final])
ENDS = FINAL_STATES.map(lambda state: Event(end=End(state=state, final={"done_reason": "stop", "note": "a\nb\rc"})))


@st.composite
def logs(draw: st.DrawFn) -> list[bytes]:
    return [line(event) for event in [*draw(st.lists(EVENTS, max_size=10)), draw(ENDS)]]


@given(logs(), st.data())
def test_the_bytes_are_the_same_for_any_split_of_the_log_at_event_ends(lines: list[bytes], data: st.DataObject) -> None:
    """Live, caught up or replayed after the end: a reader cannot tell, and can compare."""
    uncut = log_frames(Position(5, 0), b"".join(lines))
    frames, offset, rest = b"", 0, lines
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        events = b"".join(rest[:count])
        frames += log_frames(Position(5, offset), events)
        offset, rest = offset + len(events), rest[count:]
    assert frames == uncut


@given(logs())
def test_each_id_is_the_epoch_and_the_offset_behind_its_event(lines: list[bytes]) -> None:
    events = parse_sse(log_frames(Position(5, 0), b"".join(lines)).decode())
    ends = [len(b"".join(lines[: n + 1])) for n in range(len(lines))]
    assert [parse_position(event.id) for event in events] == [Position(5, end) for end in ends]
    for event, raw in zip(events, lines, strict=True):
        if event.event == "token":
            assert event.data == raw.decode().removesuffix("\n"), "the data is the log event"


@given(logs())
def test_data_never_holds_a_bare_line_end(lines: list[bytes]) -> None:
    """CR, LF and CR LF all end a line of an event stream (WHATWG HTML §9.2.6): a bare one would cut the event."""
    frames = log_frames(Position(5, 0), b"".join(lines))
    assert b"\r" not in frames
    for frame in frames.split(b"\n\n")[:-1]:
        assert [field.split(b":")[0] for field in frame.split(b"\n")] == [b"id", b"event", b"data"]


def test_a_carriage_return_that_a_node_wrote_as_white_space_becomes_a_space() -> None:
    frames = log_frames(Position(5, 0), b'{"data":[1,\r2]}\n')
    assert frames == b'id: 5.16\nevent: token\ndata: {"data":[1, 2]}\n\n'


def test_the_end_event_is_named_after_the_state_and_says_what_went_wrong() -> None:
    fault = Fault(code=Code.NODE_FAILED, message="the node fell over")
    raw = line(Event(end=End(state=JobState.FAILED, fault=fault)))
    (event,) = parse_sse(log_frames(Position(5, 0), raw).decode())
    assert event.event == "failed"
    assert decode_event(raw).end == End(state=JobState.FAILED, fault=fault)
    assert "the node fell over" in event.data


def test_a_change_of_state_carries_no_id_so_the_readers_position_stays() -> None:
    assert state_frame("bound", b'{"node":"a"}') == b'event: bound\ndata: {"node":"a"}\n\n'


def test_a_plain_data_frame_has_a_position_only_when_it_can_be_resumed() -> None:
    assert data_frame(b"{}") == b"data: {}\n\n"
    assert data_frame(b"{}", b"5.7") == b"id: 5.7\ndata: {}\n\n"
