"""The most tokens that a request's prompt can have, whatever its model's tokenizer: what budgets reserve for it. Pure.

Tokenizers with byte fallback (BPE, SentencePiece) make no more tokens than a text has bytes, and a prompt never has more than its
model's context. Between what a client sends stands what the model's template puts there; that is allowed for below.
"""

from typing import Any, NamedTuple

import msgspec

from libs.common.contracts.requests import Kind, Request

# gpt-oss puts 68 tokens before a "hi", llama3.2 25, the other families of Ollama's library fewer.
AROUND_REQUEST = 64
# Role, marks of begin and end: 4 to 6 tokens. With the space of the message before.
AROUND_MESSAGE = 8
# How to call tools, in words: about 60 (llama3.2) to 200 (qwen3-coder).
AROUND_TOOLS = 256
# llama.cpp shrinks images to at most so many (`set_limit_image_tokens` in its clip.cpp), whatever the model could see.
IMAGE_TOKENS = 4096
# A template of the request's own can repeat its prompt as often as it likes: only a context bounds it. The longest that
# a node may take by itself (ollama-facts.md §3.10).
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
    if kind is not Kind.EMBED and request.template is not None:
        return window
    parts = _inputs(request) if kind is Kind.EMBED else [_prompt(request, bound.own_bytes)]
    found = [-(-size // bytes_per_token) + around for size, around in parts]
    return sum(found) if context is None else sum(min(each, window) for each in found)


def _inputs(request: Request) -> list[tuple[int, int]]:
    given = request.input or ""
    return [(len(text.encode()), AROUND_MESSAGE) for text in ([given] if isinstance(given, str) else given)]


def _prompt(request: Request, own_bytes: int) -> tuple[int, int]:
    """Bytes, and tokens beside them."""
    messages, tools, images = request.messages or [], request.tools or [], len(request.images or [])
    size = own_bytes + sum(len(text.encode()) for text in (request.system, request.prompt, request.suffix) if text)
    size += sum(len(tool) for tool in tools)
    for message in messages:
        size += _size(message)
        images += len(message.get("images") or [])
    return size, AROUND_REQUEST + AROUND_MESSAGE * len(messages) + AROUND_TOOLS * bool(tools) + IMAGE_TOKENS * images


def _size(message: dict[str, Any]) -> int:
    """Thinking too: some templates show a model its own of earlier turns."""
    texts = sum(
        len((message.get(name) or "").encode()) for name in ("content", "thinking", "tool_name", "tool_call_id")
    )
    calls = message.get("tool_calls")
    return texts + (len(msgspec.json.encode(calls)) if calls else 0)
