"""Answers on the wire: structs whose field order is Ollama's, encoded as Go encodes JSON."""

import datetime
import functools
from typing import Any

import msgspec

_ENCODER = msgspec.json.Encoder()
_HTML_ESCAPES = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)


class ToolFunction(msgspec.Struct, frozen=True):
    index: int
    name: str
    arguments: msgspec.Raw  # an object as text, so that the key order stays


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    function: ToolFunction


class AnswerMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str
    content: str
    thinking: str = ""
    tool_calls: list[ToolCall] = []


class DebugInfo(msgspec.Struct, frozen=True):
    rendered_template: str


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class Logprob(msgspec.Struct, frozen=True, omit_defaults=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob] = []


class Metrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Durations in nanoseconds; zeros stay out of the JSON."""

    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0


class ChatLine(msgspec.Struct, frozen=True, omit_defaults=True):
    model: str
    created_at: str
    message: AnswerMessage
    done: bool
    done_reason: str = ""
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    debug_info: DebugInfo | None = msgspec.field(name="_debug_info", default=None)
    logprobs: list[Logprob] = []


class GenerateLine(msgspec.Struct, frozen=True, omit_defaults=True):
    model: str
    created_at: str
    response: str
    thinking: str = ""
    done: bool = msgspec.field(default_factory=bool)  # always on the wire, hence no plain default
    done_reason: str = ""
    context: list[int] = []
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    tool_calls: list[ToolCall] = []
    debug_info: DebugInfo | None = msgspec.field(name="_debug_info", default=None)
    logprobs: list[Logprob] = []


class EmbedAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    model: str
    embeddings: list[list[float]]
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0


class Details(msgspec.Struct, frozen=True, omit_defaults=True):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    context_length: int = 0
    embedding_length: int = 0


class InstalledModel(msgspec.Struct, frozen=True):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    capabilities: list[str]


class LoadedModel(msgspec.Struct, frozen=True):
    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class Tensor(msgspec.Struct, frozen=True):
    name: str
    type: str
    shape: list[int]


class ShownModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    modelfile: str
    template: str
    system: str = ""
    details: Details
    model_info: dict[str, Any]
    tensors: list[Tensor]
    capabilities: list[str]
    modified_at: str


class ProgressLine(msgspec.Struct, frozen=True, omit_defaults=True):
    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


def encode(value: Any) -> bytes:
    """JSON without spaces and with `<`, `>`, `&` escaped inside strings, where alone they can stand."""
    body = _ENCODER.encode(value)
    for plain, escaped in _HTML_ESCAPES:
        if plain in body:
            body = body.replace(plain, escaped)
    return body


def go_time(ns: int) -> str:
    """RFC 3339 in UTC with as many digits of the fraction as are not zero."""
    seconds, fraction = divmod(ns, 10**9)
    digits = f".{fraction:09d}".rstrip("0").rstrip(".")
    return f"{_whole_second(seconds)}{digits}Z"


@functools.lru_cache(maxsize=64)
def _whole_second(seconds: int) -> str:
    epoch = datetime.datetime(1970, 1, 1)
    return (epoch + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
