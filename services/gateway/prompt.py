"""What a request puts before the model, in the order in which Ollama's templates do: tools, system, then the messages. Pure.

One canonical form for two readers: the estimate of tokens, and the chain of hashes (affinity.py). It is append-only: the
form of a conversation's next turn begins with the form of the turn before. It is never sent anywhere.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from libs.common.contracts.requests import Kind, Request

BYTES_PER_TOKEN = 4  # the usual rule of thumb; an estimate is all the router needs
# Vision models spend 256 (gemma3) to about 1,600 (llama3.2-vision) tokens on an image, whatever its bytes.
IMAGE_TOKENS = 768
# What no usual text and model goes below: prose of one that knows many long words, and gemma3's images.
LEAST_BYTES_PER_TOKEN, LEAST_IMAGE_TOKENS = 6, 256

# Claude Code puts `x-anthropic-billing-header: cc_version=…; cch=…;` before its system prompt, with other values in each
# request (security-and-clients.md §0.7). It says nothing to a model, and would make no two prompts alike.
_VOLATILE = re.compile(r"\A\s*x-anthropic-billing-header:(?:[ \t]*[\w-]+=[^;\s]*;)*\s*")


class Piece(NamedTuple):
    """`images` count where the piece ends. `is_end`: of a message, or of what stands before all messages."""

    text: bytes
    images: int = 0
    is_end: bool = True
    is_head: bool = False  # tools and system, which conversations share


def pieces(kind: Kind, request: Request) -> list[Piece]:
    match kind:
        case Kind.CHAT:
            return list(_chat(request))
        case Kind.GENERATE:
            return list(_generate(request))
        case Kind.EMBED:
            given = request.input or ""
            return [Piece(text.encode()) for text in ([given] if isinstance(given, str) else given)]


def tokens(parts: Iterable[Piece]) -> int:
    """How many the prompt has, about."""
    return max(1, tokens_at(*_extent(parts)))


def at_least(parts: Iterable[Piece]) -> int:
    """So many tokens at least: for refusals, which an estimate must not cause by its error."""
    size, images = _extent(parts)
    return size // LEAST_BYTES_PER_TOKEN + images * LEAST_IMAGE_TOKENS


def _extent(parts: Iterable[Piece]) -> tuple[int, int]:
    """Bytes, and images."""
    size = images = 0
    for part in parts:
        size, images = size + len(part.text), images + part.images
    return size, images


def tokens_at(size: int, images: int) -> int:
    return size // BYTES_PER_TOKEN + images * IMAGE_TOKENS


def without_volatile(system: str) -> str:
    """A system prompt as two requests of the same program have it alike."""
    return _VOLATILE.sub("", system, count=1)


def _chat(request: Request) -> Iterator[Piece]:
    if request.tools:
        yield Piece(b"".join(request.tools), is_head=True)
    before_all = True
    for message in request.messages or []:
        before_all = before_all and message.get("role") == "system"
        yield from _message(message, is_head=before_all)


def _message(message: dict[str, Any], *, is_head: bool) -> Iterator[Piece]:
    # Without `thinking`: templates leave that of earlier turns out, and clients send it or not.
    role, content = message.get("role", ""), message.get("content") or ""
    if role == "system":
        content = without_volatile(content)
    images = message.get("images") or []
    if images:
        yield Piece(_json([role, _digests(images)]), images=len(images), is_end=False)
    rest = [message.get(name) for name in ("tool_calls", "tool_name", "tool_call_id")]
    # Text first, then what follows it: a text that goes on is another text only where it goes on.
    yield Piece(_json([role, content, *(rest if any(rest) else ())]), is_head=is_head and not images)


def _generate(request: Request) -> Iterator[Piece]:
    if request.system:
        yield Piece(_json(without_volatile(request.system)), is_head=True)
    if request.images:
        yield Piece(_json(_digests(request.images)), images=len(request.images), is_end=False)
    yield Piece((request.prompt or "").encode())
    if request.suffix:
        yield Piece(_json([request.suffix]))


def _digests(images: list[str]) -> list[str]:
    return [hashlib.blake2b(image.encode(), digest_size=16).hexdigest() for image in images]


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)
