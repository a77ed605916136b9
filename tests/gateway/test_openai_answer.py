"""Our events as OpenAI's chat completions, held against the types of the official package."""

import json
from typing import Any

import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from libs.common.contracts.events import End, Event
from libs.common.contracts.faults import Code, Fault
from libs.common.folding import Answer
from libs.common.states import JobState
from services.gateway.openai_answer import DONE, ChunkWriter, completion, completion_id, fault_of

JOB = "job_abcdefghijklmnopqrstuvwxyz"
FINAL = {"done_reason": "stop", "prompt_eval_count": 11, "eval_count": 5}
CALL = {"function": {"name": "weather", "arguments": {"city": "La Paz", "days": 2}}}
LOGPROBS = [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": [{"token": "Hi", "logprob": -0.5}]}]


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def end(final: dict[str, Any] | None = None, state: JobState = JobState.SUCCEEDED, fault: Fault | None = None) -> Event:
    return Event(end=End(state=state, final=final, fault=fault))


def streamed(*events: Event, include_usage: bool = False) -> list[bytes]:
    writer = ChunkWriter(JOB, "m:1", 1_700_000_000, include_usage=include_usage)
    return [data for event in events for data in writer.chunks(event)]


def chunks(*events: Event, include_usage: bool = False) -> list[ChatCompletionChunk]:
    *data, done = streamed(*events, include_usage=include_usage)
    assert done == DONE == b"[DONE]"
    return [ChatCompletionChunk.model_validate_json(chunk, strict=True) for chunk in data]


def whole(*events: Event) -> ChatCompletion:
    answer = Answer()
    for event in events:
        answer.add(event)
    return ChatCompletion.model_validate_json(json.dumps(completion(JOB, "m:1", 1_700_000_000, answer)), strict=True)


def test_a_stream_begins_with_the_role_and_ends_with_a_reason_and_done() -> None:
    first, second, last = chunks(Event(text="Hello "), Event(text="world"), end(FINAL))
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "Hello ")
    assert (second.choices[0].delta.role, second.choices[0].delta.content) == (None, "world")
    assert last.choices[0].delta.content is None
    assert [chunk.choices[0].finish_reason for chunk in (first, second, last)] == [None, None, "stop"]
    assert {chunk.id for chunk in (first, second, last)} == {completion_id(JOB)}
    assert {(chunk.object, chunk.model, chunk.created) for chunk in (first, last)} == {
        ("chat.completion.chunk", "m:1", 1_700_000_000)
    }


def test_usage_comes_last_in_a_chunk_without_choices_and_only_when_asked_for() -> None:
    *_, last = chunks(Event(text="x"), end(FINAL), include_usage=True)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (11, 5, 16)
    assert all(chunk.usage is None for chunk in chunks(Event(text="x"), end(FINAL)))


def test_an_empty_answer_still_has_a_role_and_a_reason() -> None:
    (only,) = chunks(end(FINAL))
    assert only.choices[0].delta.role == "assistant"
    assert only.choices[0].finish_reason == "stop"


def test_thinking_travels_as_reasoning() -> None:
    first, *_ = chunks(Event(thinking="hm"), Event(text="x"), end(FINAL))
    assert first.choices[0].delta.model_dump(exclude_none=True) == {"role": "assistant", "reasoning": "hm"}
    assert whole(Event(thinking="hm"), Event(text="x"), end(FINAL)).choices[0].message.model_dump()["reasoning"] == "hm"


def test_tool_calls_are_numbered_and_their_arguments_are_strings_of_json() -> None:
    first, second, last = chunks(Event(tool_call=raw(CALL)), Event(tool_call=raw(CALL | {"id": "mine"})), end(FINAL))
    calls = [chunk.choices[0].delta.tool_calls for chunk in (first, second)]
    assert calls[0] is not None
    assert calls[1] is not None
    assert [call[0].index for call in calls if call] == [0, 1]
    function = calls[0][0].function
    assert function is not None
    assert function.name == "weather"
    assert json.loads(function.arguments or "") == {"city": "La Paz", "days": 2}
    assert calls[1][0].id == "mine"
    assert calls[0][0].id
    assert last.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(("reason", "said"), [("stop", "stop"), ("length", "length"), ("load", "stop"), ("", "stop")])
def test_the_reason_is_one_that_openai_knows(reason: str, said: str) -> None:
    *_, last = chunks(Event(text="x"), end({"done_reason": reason}))
    assert last.choices[0].finish_reason == said
    assert whole(Event(text="x"), end({"done_reason": reason})).choices[0].finish_reason == said


@pytest.mark.parametrize("items", [LOGPROBS, [{"token": "Hi", "logprob": -0.5}]])
def test_logprobs_fit_openais_type_whatever_ollama_left_away(items: list[Any]) -> None:
    event = Event(text="Hi", logprobs=raw(items))
    streamed_, *_ = chunks(event, end(FINAL))
    for logprobs in (streamed_.choices[0].logprobs, whole(event, end(FINAL)).choices[0].logprobs):
        assert logprobs is not None
        assert logprobs.content is not None
        assert (logprobs.content[0].token, logprobs.content[0].logprob) == ("Hi", -0.5)


def test_a_failure_in_the_stream_is_an_error_object_and_no_done() -> None:
    """A client that sees [DONE] takes half an answer for a whole one."""
    fault = Fault(code=Code.NODE_FAILED, message="the node fell over; try again")
    *_, last = streamed(Event(text="x"), end(None, JobState.FAILED, fault))
    assert json.loads(last) == {
        "error": {"message": fault.message, "type": "api_error", "param": None, "code": "node_failed"}
    }


def test_a_whole_answer_has_text_tool_calls_and_usage() -> None:
    made = whole(Event(text="Hello "), Event(text="world"), Event(tool_call=raw(CALL)), end(FINAL))
    assert made.object == "chat.completion"
    (choice,) = made.choices
    assert choice.message.content == "Hello world"
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].type == "function"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == CALL["function"]["arguments"]
    assert made.usage is not None
    assert made.usage.total_tokens == 16


def test_the_same_call_has_the_same_id_streamed_and_whole() -> None:
    """The next request names it."""
    first, *_ = chunks(Event(tool_call=raw(CALL)), end(FINAL))
    calls = whole(Event(tool_call=raw(CALL)), end(FINAL)).choices[0].message.tool_calls
    assert first.choices[0].delta.tool_calls is not None
    assert calls is not None
    assert first.choices[0].delta.tool_calls[0].id == calls[0].id


@pytest.mark.parametrize("state", [state for state in JobState if state.final and state is not JobState.SUCCEEDED])
def test_only_success_is_an_answer(state: JobState) -> None:
    assert fault_of(End(state=state)) is not None
    fault = Fault(code=Code.CANCELLED, message="x")
    assert fault_of(End(state=state, fault=fault)) == fault
    assert fault_of(End(state=JobState.SUCCEEDED, final=FINAL)) is None
