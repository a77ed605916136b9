"""The most tokens that a request's prompt can have, whatever its model's tokenizer: what budgets reserve for it. Pure.

Tokenizers with byte fallback (BPE, SentencePiece) make no more tokens than a text has bytes, and a prompt never has more than its
model's context. Between what a client sends stands what the model's template puts there; that is allowed for below.
"""

import base64
import binascii
import itertools
from typing import Any, NamedTuple

import msgspec

from libs.common.contracts.requests import Kind, Request

# From sources of templates, not from every model: gpt-oss puts some 70 tokens before a "hi", llama3.2 25.
AROUND_REQUEST = 256
# Role, marks of begin and end: 4 to 6 tokens, 12 for gpt-oss with a thought.
AROUND_MESSAGE = 16
# What a tool answered: qwen writes <tool_response> in plain letters, command-r a document with a number.
AROUND_RESULT = 48
# How to call tools, in words: about 60 (llama3.2) to 350.
AROUND_TOOLS = 512
AROUND_TOOL = 96
# Each value in a tool's schema or a call's arguments stands on a line, or in an element, of its own.
AROUND_VALUE = 16
_NUMBER = 24  # Go writes 1e20 with all its digits
# llama.cpp shrinks images to at most so many (`set_limit_image_tokens` in its clip.cpp), whatever the model could see.
IMAGE_TOKENS = 4096
# A template of the request's own can repeat its prompt as often as it likes, and sound has as many tokens as it lasts: only
# a context bounds them. The longest that a node takes by itself (ollama-facts.md §3.10).
LONGEST_CONTEXT = 262_144
_CONTEXT_STEP = 256  # engines round a context up to it (ollama-facts.md §1.6)


class PromptBound(NamedTuple):
    """What bounds a prompt. `own_bytes`: of what the model's Modelfile puts before each. `context`: of the model in the whole
    fleet, if an operator has set it."""

    request: Request
    own_bytes: int = 0
    context: int | None = None


def most_tokens(kind: Kind, bound: PromptBound, bytes_per_token: int = 1) -> int:
    request, context = bound.request, bound.context
    window = LONGEST_CONTEXT if context is None else -(-context // _CONTEXT_STEP) * _CONTEXT_STEP
    if kind is not Kind.EMBED and (request.template is not None or any(map(_is_sound, _images(request)))):
        return window
    parts = _inputs(request) if kind is Kind.EMBED else [_prompt(request, bound.own_bytes)]
    found = [-(-size // bytes_per_token) + around for size, around in parts]
    return sum(found) if context is None else sum(min(each, window) for each in found)


def answers(kind: Kind, request: Request) -> int:
    """How often an answer of its longest length can be made: a model that thinks is asked twice when the answer has a format,
    and its thought is a part of the second prompt (ollama-facts.md §1.3)."""
    return 2 if kind is Kind.CHAT and request.format and request.think is not False else 1


def _inputs(request: Request) -> list[tuple[int, int]]:
    given = request.input or ""
    return [(len(text.encode()), AROUND_MESSAGE) for text in ([given] if isinstance(given, str) else given)]


def _prompt(request: Request, own_bytes: int) -> tuple[int, int]:
    """Bytes, and tokens beside them."""
    messages, tools = request.messages or [], request.tools or []
    size = own_bytes + len(request.format)  # some templates tell the model its format
    size += sum(len(text.encode()) for text in (request.system, request.prompt, request.suffix) if text)
    size += sum(_size(message) for message in messages)
    size += sum(AROUND_TOOL + _written(msgspec.json.decode(tool)) for tool in tools)
    around = AROUND_REQUEST + AROUND_MESSAGE * len(messages) + AROUND_TOOLS * bool(tools)
    results = sum(message.get("role") == "tool" for message in messages)
    around += results * (AROUND_RESULT + max(map(_longest_name, messages), default=0))
    return size, around + IMAGE_TOKENS * len(_images(request))


def _images(request: Request) -> list[str]:
    of_messages = (message.get("images") or [] for message in request.messages or [])
    return list(itertools.chain(request.images or [], *of_messages))


def _is_sound(image: str) -> bool:
    """As Ollama tells it from pictures (its `llm/media.go`)."""
    try:
        head = base64.b64decode(image[:16], validate=True)
    except (binascii.Error, ValueError):
        return False
    is_mp3 = head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
    return is_mp3 or (head[:4] == b"RIFF" and head[8:12] == b"WAVE")


def _size(message: dict[str, Any]) -> int:
    """Thinking too: some templates show a model its own of earlier turns. A role is checked by nobody, and written out."""
    texts = sum(len((message.get(name) or "").encode()) for name in ("role", "thinking", "tool_name", "tool_call_id"))
    content = message.get("content") or ""
    texts += _escaped(content) if message.get("role") == "tool" else len(content.encode())
    return texts + sum(AROUND_TOOL + _written(call) for call in message.get("tool_calls") or [])


def _longest_name(message: dict[str, Any]) -> int:
    """Of the tools that it calls: some templates write it to each result."""
    calls = (call.get("function") or {} for call in message.get("tool_calls") or [])
    return max((len(str(call.get("name") or "").encode()) for call in calls), default=0)


def _written(value: Any) -> int:
    """Bytes of a JSON value as Go and templates write it, with spaces, escapes and lines of its own."""
    match value:
        case dict():
            return 2 + sum(AROUND_VALUE + _escaped(str(name)) + _written(each) for name, each in value.items())
        case list():
            return 2 + sum(AROUND_VALUE + _written(each) for each in value)
        case str():
            return _escaped(value)
        case _:
            return _NUMBER


def _escaped(text: str) -> int:
    r"""As JSON; Go's writes `<` as \u003c, and line separators alike."""
    return len(msgspec.json.encode(text)) + 5 * sum(map(text.count, "<>&\u2028\u2029"))
