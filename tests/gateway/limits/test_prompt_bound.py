"""No prompt has more tokens than were reserved for it: what a real Ollama counted, any chat in the simulator's templates."""

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.requests import Kind, Request
from libs.ollama_sim.models import ChatPath, parse_models
from libs.ollama_sim.prompts import render_chat
from libs.ollama_sim.requests import Message
from services.gateway.limits.prompt_bound import (
    AROUND_MESSAGE,
    AROUND_REQUEST,
    AROUND_RESULT,
    AROUND_TOOL,
    AROUND_TOOLS,
    AROUND_VALUE,
    IMAGE_TOKENS,
    LONGEST_CONTEXT,
    PromptBound,
    answers,
    most_tokens,
)
from tests.ollama_sim import recordings

KINDS = {b"/api/chat": Kind.CHAT, b"/api/generate": Kind.GENERATE, b"/api/embed": Kind.EMBED}


def counted(recording: recordings.Recording) -> int:
    """As the real Ollama says; 0 where it does not."""
    try:
        lines = recording.reply.lines
    except (ValueError, AssertionError):
        return 0
    return max((line.get("prompt_eval_count", 0) for line in lines if isinstance(line, dict)), default=0)


def recorded() -> list[Any]:
    found = []
    for name in recordings.names():
        recording = recordings.load(name)
        kind = KINDS.get(recording.request.split(b" ")[1])
        if kind is not None and recording.body and counted(recording):
            fields = {field: recording.body[field] for field in Request.__struct_fields__ if field in recording.body}
            request = msgspec.json.decode(msgspec.json.encode(fields), type=Request, strict=False)
            found.append(pytest.param(kind, request, counted(recording), id=name))
    assert len(found) > 30
    return found


@pytest.mark.parametrize(("kind", "request_", "tokens"), recorded())
def test_what_a_real_ollama_counted_is_not_more(kind: Kind, request_: Request, tokens: int) -> None:
    assert tokens <= most_tokens(kind, PromptBound(request_))


MODELS = [msgspec.structs.replace(parse_models("chat=1GB:tools")[0], path=path) for path in ChatPath]
TEXT = st.text(max_size=30)
ROLE = st.sampled_from(["user", "assistant", "tool"]) | st.text(max_size=64)  # nobody checks it


@given(
    model=st.sampled_from(MODELS),
    turns=st.lists(st.tuples(ROLE, TEXT, TEXT, st.booleans()), min_size=1, max_size=8),
    tools=st.lists(TEXT, max_size=3),
    own=TEXT,
)  # fmt: skip
def test_a_token_for_each_byte_of_a_rendered_chat_is_not_more(
    model: Any, turns: list[tuple[str, str, str, bool]], tools: list[str], own: str
) -> None:
    """The simulator's templates, with every mark of a template one token as in real vocabularies."""
    offered = [msgspec.json.encode({"type": "function", "function": {"name": name}}) for name in tools]
    calls = [
        (msgspec.json.encode({"name": text, "arguments": {}}).decode(),) if has else () for _, text, _, has in turns
    ]
    messages = [Message("system", own)] if own else []
    messages += [
        Message(role, text, thinking, tool_calls=call)
        for (role, text, thinking, _), call in zip(turns, calls, strict=True)
    ]
    shown = render_chat(model, tuple(messages), tools_json=b"\n".join(offered).decode(), does_think=False).text
    for mark in (
        "<|im_start|>",
        "<|im_end|>",
        "user\n",
        "tool\n",
        "assistant\n",
        "system\n",
        "[user]",
        "[tool]",
        "[assistant]",
    ):
        shown = shown.replace(mark, "_")
    for mark in ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"):
        shown = shown.replace(mark, "_")
    request = Request(
        model="m",
        messages=[
            {"role": role, "content": text, "thinking": thinking, "tool_calls": [{"name": text, "arguments": {}}] * has}
            for role, text, thinking, has in turns
        ],
        tools=[msgspec.Raw(tool) for tool in offered] or None,
    )  # fmt: skip
    assert len(shown.encode()) <= most_tokens(Kind.CHAT, PromptBound(request, len(own.encode())))


def chat(content: str, **more: Any) -> Request:
    return Request(model="m", messages=[{"role": "user", "content": content} | more])


def test_all_that_can_stand_in_a_prompt_counts() -> None:
    around = AROUND_REQUEST + AROUND_MESSAGE + len("user")
    assert most_tokens(Kind.CHAT, PromptBound(chat("é"))) == 2 + around
    assert most_tokens(Kind.CHAT, PromptBound(chat("x"), own_bytes=500)) == 501 + around
    assert most_tokens(Kind.CHAT, PromptBound(chat("x", thinking="hm", tool_name="f", tool_call_id="c1"))) == 6 + around
    assert most_tokens(Kind.CHAT, PromptBound(chat("", images=["aaaa", "bbbb"]))) == 2 * IMAGE_TOKENS + around
    with_tools = msgspec.structs.replace(chat("x"), tools=[msgspec.Raw(b'{"a":"<"}'), msgspec.Raw(b"{}")])
    escaped = 2 + AROUND_VALUE + len('"a"') + len('"<"') + 5
    assert most_tokens(Kind.CHAT, PromptBound(with_tools)) == 1 + around + AROUND_TOOLS + 2 * AROUND_TOOL + escaped + 2
    calls = [{"function": {"name": "abcdefgh", "arguments": {"a": [1]}}}]
    called = most_tokens(Kind.CHAT, PromptBound(chat("", tool_calls=calls)))
    assert called > around + AROUND_TOOL + 4 * AROUND_VALUE + 24
    result = {"role": "tool", "content": "<", "tool_call_id": "c1"}
    answered = Request(model="m", messages=[*(chat("", tool_calls=calls).messages or []), result])
    more = AROUND_MESSAGE + AROUND_RESULT + len("tool") + 8 + len("c1") + len("abcdefgh")
    assert most_tokens(Kind.CHAT, PromptBound(answered)) == called + more
    formatted = msgspec.structs.replace(chat("x"), format=msgspec.Raw(b'{"type":"object"}'))
    assert most_tokens(Kind.CHAT, PromptBound(formatted)) == 1 + around + 17
    generate = Request(model="m", prompt="ab", system="cde", suffix="fghi", images=["x"])
    assert most_tokens(Kind.GENERATE, PromptBound(generate)) == 9 + AROUND_REQUEST + IMAGE_TOKENS


def test_no_prompt_is_longer_than_the_context() -> None:
    long = chat("x" * 9000)
    assert most_tokens(Kind.CHAT, PromptBound(long, context=4096)) == 4096
    assert most_tokens(Kind.CHAT, PromptBound(long, context=4097)) == 4352, "engines round up"
    inputs = Request(model="m", input=["x" * 9000, "x"])
    assert most_tokens(Kind.EMBED, PromptBound(inputs, context=512)) == 512 + 1 + AROUND_MESSAGE
    assert most_tokens(Kind.EMBED, PromptBound(Request(model="m", input="abc"))) == 3 + AROUND_MESSAGE


def test_a_template_can_make_anything_of_a_prompt() -> None:
    own = Request(model="m", prompt="x", template="{{ .Prompt }}{{ .Prompt }}")
    assert most_tokens(Kind.GENERATE, PromptBound(own, context=2048)) == 2048
    assert most_tokens(Kind.GENERATE, PromptBound(own)) == LONGEST_CONTEXT


@pytest.mark.parametrize(
    ("head", "is_sound"),
    [
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", True),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", False),
        (b"ID3\x04" * 4, True),
        (b"\xff\xfb\x90\x64" * 4, True),
        (b"\xff\xd8\xff\xe0" * 4, False),
        (b"\x89PNG\r\n\x1a\n" * 2, False),
    ],
)
def test_sound_is_as_long_as_it_lasts(head: bytes, is_sound: bool) -> None:
    request = chat("x", images=[base64.b64encode(head).decode()])
    assert (most_tokens(Kind.CHAT, PromptBound(request)) == LONGEST_CONTEXT) is is_sound
    assert most_tokens(Kind.CHAT, PromptBound(chat("x", images=["!"]))) < LONGEST_CONTEXT, (
        "no base64: Ollama refuses it"
    )


def test_a_model_that_thinks_makes_an_answer_with_a_format_twice() -> None:
    formatted = msgspec.structs.replace(chat("x"), format=msgspec.Raw(b'"json"'))
    assert [answers(Kind.CHAT, each) for each in (chat("x"), formatted)] == [1, 2]
    assert answers(Kind.CHAT, msgspec.structs.replace(formatted, think=False)) == 1
    assert answers(Kind.GENERATE, formatted) == 1


def test_an_operator_can_have_it_estimated() -> None:
    assert most_tokens(Kind.CHAT, PromptBound(chat("x" * 396)), 4) == 100 + AROUND_REQUEST + AROUND_MESSAGE
