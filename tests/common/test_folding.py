"""A job's result is a pure fold of its token log."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.codec import Malformed
from libs.common.contracts.events import End, Event, line
from libs.common.contracts.requests import Kind
from libs.common.folding import fold
from libs.common.states import JobState

FINAL = {"model": "m", "done": True, "done_reason": "stop", "eval_count": 4}
CALL = {"function": {"name": "weather", "arguments": {"city": "La Paz"}}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def end(final: dict[str, Any] | None = None, state: JobState = JobState.SUCCEEDED) -> bytes:
    return line(Event(end=End(state=state, final=final)))


EVENTS = st.one_of(
    st.text(max_size=10).map(lambda text: Event(text=text)),
    st.text(max_size=10).map(lambda text: Event(thinking=text)),
    st.dictionaries(st.text(max_size=5), JSON, max_size=3).map(lambda call: Event(tool_call=raw(call))),
    st.tuples(st.text(max_size=5), st.lists(JSON, max_size=2)).map(lambda p: Event(text=p[0], logprobs=raw(p[1]))),
)


@given(st.lists(EVENTS, max_size=10), st.sampled_from([Kind.CHAT, Kind.GENERATE]))
def test_the_result_is_what_a_direct_fold_over_the_events_gives(events: list[Event], kind: Kind) -> None:
    log = b"".join(map(line, events)) + end(FINAL)

    text = "".join(event.text or "" for event in events)
    thinking = "".join(event.thinking or "" for event in events)
    calls = [msgspec.json.decode(event.tool_call) for event in events if event.tool_call]
    logprobs = [item for event in events if event.logprobs for item in msgspec.json.decode(event.logprobs)]
    extra = ({"thinking": thinking} if thinking else {}) | ({"tool_calls": calls} if calls else {})
    wanted: dict[str, Any] = dict(FINAL)
    if kind is Kind.CHAT:
        wanted["message"] = {"role": "assistant", "content": text} | extra
    else:
        wanted |= {"response": text} | extra
    if logprobs:
        wanted["logprobs"] = logprobs

    assert fold(log).result(kind) == wanted


def test_embeddings_are_the_data_of_their_event() -> None:
    log = line(Event(data=raw([[0.5, -1.0], [2.0, 3.5]]))) + end({"model": "e", "prompt_eval_count": 3})
    assert fold(log).result(Kind.EMBED) == {
        "model": "e", "prompt_eval_count": 3, "embeddings": [[0.5, -1.0], [2.0, 3.5]],
    }  # fmt: skip


def test_a_tool_call_keeps_its_arguments_as_an_object() -> None:
    result = fold(line(Event(tool_call=raw(CALL))) + end(FINAL)).result(Kind.CHAT)
    assert result is not None
    assert result["message"] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED, JobState.EXPIRED])
def test_a_job_without_an_ending_of_ollamas_has_no_result(state: JobState) -> None:
    """Part of a text that looks like an answer would be taken for one."""
    assert fold(line(Event(text="half an ans")) + end(None, state)).result(Kind.CHAT) is None


def test_a_carriage_return_between_json_tokens_does_not_cut_an_event() -> None:
    log = b'{"tool_call":{"function":\r{"name":"f"}}}\n' + end(FINAL)
    result = fold(log).result(Kind.CHAT)
    assert result is not None
    assert result["message"]["tool_calls"] == [{"function": {"name": "f"}}]


def test_a_broken_log_says_so() -> None:
    with pytest.raises(Malformed):
        fold(b'{"text": 1}\n')
