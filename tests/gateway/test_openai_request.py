"""OpenAI's chat request in Ollama's terms: what is mapped, what is refused, and that nothing else happens."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.clients import Policy
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, Failed, Fault
from libs.common.contracts.requests import Kind, Priority, decode_request
from services.gateway.openai_request import DEADLINE_S, RESULT_TTL_S, ROUTE, ChatBody, ChatWish, parse_chat
from tests.gateway.bodies import objects

USER = {"role": "user", "content": "hi"}
BASE: dict[str, Any] = {"model": "m", "messages": [USER]}
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
}


def parse(body: Any, **more: Any) -> ChatWish:
    given_ = {"policy": Policy(), "detached": False} | more
    return parse_chat(
        body if isinstance(body, bytes) else json.dumps(body).encode(), given_["policy"], detached=given_["detached"]
    )


def refusal(body: Any) -> Fault:
    with pytest.raises(Failed) as caught:
        parse(body)
    return caught.value.fault


def request(body: Any) -> dict[str, Any]:
    """As the worker will read it."""
    return dict(json.loads(encode(parse(body).wish.request)))


MAPPED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"max_tokens": 7}, {"options": {"num_predict": 7}}),
    ({"max_completion_tokens": 8}, {"options": {"num_predict": 8}}),
    ({"max_completion_tokens": 8, "max_tokens": 7}, {"options": {"num_predict": 8}}),
    (
        {"temperature": 0, "top_p": 0.5, "presence_penalty": -1, "frequency_penalty": 2, "seed": 0},
        {"options": {"temperature": 0, "top_p": 0.5, "presence_penalty": -1, "frequency_penalty": 2, "seed": 0}},
    ),
    ({"stop": "x"}, {"options": {"stop": ["x"]}}),
    ({"stop": ["x", "y"]}, {"options": {"stop": ["x", "y"]}}),
    ({"response_format": {"type": "text"}}, {}),
    ({"response_format": {"type": "json_object"}}, {"format": "json"}),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "strict": True, "schema": {"type": "object"}},
            }
        },
        {"format": {"type": "object"}},
    ),
    ({"reasoning_effort": "none"}, {"think": False}),
    ({"reasoning_effort": "minimal"}, {"think": "low"}),
    ({"reasoning_effort": "low"}, {"think": "low"}),
    ({"reasoning_effort": "medium"}, {"think": "medium"}),
    ({"reasoning_effort": "high"}, {"think": "high"}),
    ({"reasoning_effort": "xhigh"}, {"think": "max"}),
    ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
    ({"tools": [TOOL]}, {"tools": [TOOL]}),
    ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL]}),
    ({"tools": [TOOL], "tool_choice": "none"}, {}),
    ({"tools": [TOOL], "parallel_tool_calls": True}, {"tools": [TOOL]}),
    ({"tools": []}, {}),
    ({"n": 1, "logit_bias": {}, "functions": [], "modalities": ["text"], "tool_choice": "auto"}, {}),
    (
        {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "prediction": {}, "who": "knows"},
        {},
    ),
    ({name: None for name in ChatBody.__struct_fields__ if name not in BASE}, {}),
]


@pytest.mark.parametrize(("given_", "made"), MAPPED, ids=[",".join(given_)[:40] for given_, _ in MAPPED])
def test_each_parameter_becomes_what_ollama_calls_it(given_: dict[str, Any], made: dict[str, Any]) -> None:
    assert request(BASE | given_) == BASE | made


MESSAGES: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = [
    ([{"role": "developer", "content": "be brief"}], [{"role": "system", "content": "be brief"}]),
    ([{"role": "assistant", "content": None}], [{"role": "assistant", "content": ""}]),
    ([{"role": "assistant", "content": "x", "reasoning": "hm"}], [{"role": "assistant", "content": "x", "thinking": "hm"}]),
    (
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        [{"role": "user", "content": "a\nb"}],
    ),
    (
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is it?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}},
                ],
            }
        ],
        [{"role": "user", "content": "what is it?", "images": ["aGk="]}],
    ),
    (
        [
            {"role": "assistant", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
            ]},
            {"role": "tool", "tool_call_id": "c2", "content": "two"},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "one"}]},
            {"role": "tool", "tool_call_id": "c9", "content": "nine"},
        ],
        [
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "c1", "function": {"name": "f", "arguments": {"x": 1}}},
                {"id": "c2", "function": {"name": "g", "arguments": {}}},
            ]},
            {"role": "tool", "content": "two", "tool_call_id": "c2", "tool_name": "g"},
            {"role": "tool", "content": "one", "tool_call_id": "c1", "tool_name": "f"},
            {"role": "tool", "content": "nine", "tool_call_id": "c9"},
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given_", "made"), MESSAGES)
def test_each_message_becomes_one_of_ollamas(given_: list[dict[str, Any]], made: list[dict[str, Any]]) -> None:
    """OpenAI's tool answers name the call, Ollama's the tool; arguments are a string there and an object here."""
    assert request(BASE | {"messages": given_})["messages"] == made


CANNOT: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"n": 0}, "n"),
    ({"logit_bias": {"50256": -100}}, "logit_bias"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
]


@pytest.mark.parametrize(("given_", "path"), CANNOT, ids=[path for _, path in CANNOT])
def test_what_would_change_the_answer_and_cannot_be_honoured_is_refused(given_: dict[str, Any], path: str) -> None:
    fault = refusal(BASE | given_)
    assert (fault.code, fault.path) == (Code.UNSUPPORTED_PARAMETER, path)


WRONG: list[tuple[dict[str, Any], str | None]] = [
    ({"model": None}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [USER, {"role": "robot"}]}, "messages[1].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]},
        "messages[0].content[0].image_url.url",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
        "messages[0].tool_calls[0].function.name",
    ),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": True}, "stream_options"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"stop": 7}, "stop"),
    ({"stop": [7]}, "stop[0]"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 5}, "logprobs"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort"),
    ({"tools": "f"}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ({"tools": [TOOL, {"type": "function", "function": {}}]}, "tools[1]"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"tool_choice": 7}, "tool_choice"),
]


@pytest.mark.parametrize(("given_", "path"), WRONG, ids=[f"{n}-{path}" for n, (_, path) in enumerate(WRONG)])
def test_what_is_wrong_is_refused_with_its_path(given_: dict[str, Any], path: str) -> None:
    fault = refusal(BASE | given_)
    assert (fault.code, fault.path) == (Code.INVALID_REQUEST, path)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}'])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    assert refusal(body).code is Code.INVALID_REQUEST


def test_a_chat_is_interactive_and_has_the_times_of_its_route_or_of_the_clients_policy() -> None:
    wish = parse(BASE).wish
    assert (wish.kind, wish.route, wish.priority) == (Kind.CHAT, ROUTE, Priority.INTERACTIVE)
    assert (wish.deadline_s, wish.result_ttl_s, wish.detached) == (DEADLINE_S, RESULT_TTL_S, False)
    wish = parse(BASE, policy=Policy(deadline_s=5, result_ttl_s=65), detached=True).wish
    assert (wish.deadline_s, wish.result_ttl_s, wish.detached) == (5, 65, True)


def test_stream_and_usage_are_remembered_for_the_answer() -> None:
    assert (parse(BASE).stream, parse(BASE).wish.include_usage) == (False, False)
    wanted = parse(BASE | {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}})
    assert (wanted.stream, wanted.wish.include_usage) == (True, True)


@given(
    objects([*ChatBody.__struct_fields__], BASE | {"tools": [TOOL]})
    | st.builds(
        lambda m: BASE | {"messages": [USER, m]},
        objects(["role", "content", "tool_calls", "tool_call_id", "reasoning"], {"role": "assistant", "content": "x"}),
    )
    | st.builds(lambda f: BASE | {"response_format": f}, objects(["type", "json_schema"], {"type": "json_schema"}))
    | st.builds(
        lambda a: (
            BASE | {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": a}}]}]}
        ),
        st.text(alphabet='{}[]":,1e9x\\ud', max_size=20),
    )
)
def test_no_json_whatever_gives_anything_but_a_refusal_or_a_request_that_can_be_stored(body: dict[str, Any]) -> None:
    try:
        wanted = parse(body)
    except Failed as failure:
        refused = failure.fault
    else:
        assert decode_request(encode(wanted.wish.request)) == wanted.wish.request
        return
    assert refused.meaning.status == 400
    assert refused.path is None or encode(refused.path)


def test_the_name_of_a_function_is_no_place_for_a_megabyte() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f" * 257, "arguments": "{}"}}
    fault = refusal({"model": "m", "messages": [{"role": "assistant", "tool_calls": [call]}]})
    assert "at most 256" in fault.message
    assert fault.path == "messages[0].tool_calls[0].function.name"
