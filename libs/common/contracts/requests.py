"""What a client asks for, in Ollama's own terms, whichever dialect it came in: the body of a job's `new` record."""

from enum import StrEnum
from typing import Any

import msgspec

from libs.common.contracts.codec import NO_JSON, Contract, Decoder


class Kind(StrEnum):
    CHAT = "chat"
    GENERATE = "generate"
    EMBED = "embed"


class Priority(StrEnum):
    """In the order in which they are served."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"


class Request(Contract, frozen=True, kw_only=True):
    """The fields of Ollama's /api/chat, /api/generate and /api/embed that a client may set (its `api/types.go`).

    `keep_alive` and `stream` are missing on purpose: residency is the router's business, and the worker always streams.
    Values that only Ollama understands (messages, tools, options, format) pass through as they came.
    """

    model: str
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    input: str | list[str] | None = None
    images: list[str] | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    raw: bool | None = None
    options: dict[str, Any] | None = None
    format: msgspec.Raw = NO_JSON
    tools: list[msgspec.Raw] | None = None
    think: bool | str | None = None
    truncate: bool | None = None
    dimensions: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


decode_request = Decoder(Request)
