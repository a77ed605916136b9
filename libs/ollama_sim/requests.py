"""Request bodies to structs, with Go's case-blind keys and Go's words for what is wrong with them."""

import base64
import binascii
import re
from typing import Any

import msgspec

from libs.ollama_sim.durations import BadDuration, parse_keep_alive

_KINDS: dict[type, str] = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}
_THINK_WORDS = frozenset({"high", "medium", "low", "max"})

# field of the request: (JSON kind, Go type) as they stand in Ollama's type errors
_COMMON_FIELDS = {
    "model": ("string", "string"),
    "stream": ("bool", "bool"),
    "options": ("object", "map[string]interface {}"),
    "truncate": ("bool", "bool"),
    "shift": ("bool", "bool"),
    "logprobs": ("bool", "bool"),
    "top_logprobs": ("number", "int"),
    "_debug_render_only": ("bool", "bool"),
}
_CHAT_FIELDS = _COMMON_FIELDS | {"messages": ("array", "[]api.Message"), "tools": ("array", "api.Tools")}
_GENERATE_FIELDS = _COMMON_FIELDS | {
    "prompt": ("string", "string"),
    "suffix": ("string", "string"),
    "system": ("string", "string"),
    "raw": ("bool", "bool"),
    "images": ("array", "[]api.ImageData"),
}
_MESSAGE_FIELDS = {
    "role": ("string", "string"),
    "content": ("string", "string"),
    "thinking": ("string", "string"),
    "images": ("array", "[]api.ImageData"),
    "tool_calls": ("array", "[]api.ToolCall"),
}


class BadRequest(ValueError):
    """The text is the body of a 400."""


class Message(msgspec.Struct, frozen=True):
    role: str
    content: str = ""
    thinking: str = ""
    has_images: bool = False
    tool_calls: tuple[str, ...] = ()  # each as JSON text of name and arguments


class InferenceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What chat and generate have in common; `None` means the field was left out."""

    model: str
    keys: tuple[str, ...] = ()  # names of the fields sent, for the control route
    is_stream: bool = True
    format: Any = None
    keep_alive_s: float | None = None
    options: dict[str, Any] = {}
    think: bool | str | None = None
    does_truncate: bool = True
    does_shift: bool | None = None
    wants_logprobs: bool = False
    top_logprobs: int = 0
    is_render_only: bool = False


class ChatRequest(InferenceRequest, frozen=True, kw_only=True):
    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()


class GenerateRequest(InferenceRequest, frozen=True, kw_only=True):
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    is_raw: bool = False
    has_images: bool = False


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    keys: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    does_truncate: bool = True
    dimensions: int = 0
    keep_alive_s: float | None = None
    options: dict[str, Any] = {}


def read_object(body: bytes, struct: str = "Request") -> dict[str, Any]:
    """The JSON object of a body with lower-case keys; Ollama's decoder does not look at the case."""
    if not body.strip():
        raise BadRequest("missing request body")
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadRequest(_syntax_error(body, str(exc))) from exc
    if not isinstance(decoded, dict):
        raise BadRequest(f"json: cannot unmarshal {_kind(decoded)} into Go value of type api.{struct}")
    return {key.lower(): value for key, value in decoded.items()}


def read_chat(body: bytes) -> ChatRequest:
    fields = read_object(body, "ChatRequest")
    _check_types("ChatRequest", fields, _CHAT_FIELDS)
    return ChatRequest(
        **_common(fields),
        messages=tuple(_message(each) for each in fields.get("messages") or ()),
        tools=tuple(tool for tool in fields.get("tools") or () if isinstance(tool, dict)),
    )


def read_generate(body: bytes) -> GenerateRequest:
    fields = read_object(body, "GenerateRequest")
    _check_types("GenerateRequest", fields, _GENERATE_FIELDS)
    return GenerateRequest(
        **_common(fields),
        prompt=fields.get("prompt") or "",
        suffix=fields.get("suffix") or "",
        system=fields.get("system") or "",
        is_raw=bool(fields.get("raw")),
        has_images=_check_images(fields.get("images")),
    )


def read_embed(body: bytes) -> EmbedRequest:
    fields = read_object(body, "EmbedRequest")
    _check_types("EmbedRequest", fields, {"model": ("string", "string"), "truncate": ("bool", "bool")})
    given = fields.get("input")
    inputs = [given] if isinstance(given, str) else given or []
    if not isinstance(inputs, list) or not all(isinstance(each, str) for each in inputs):
        raise BadRequest("invalid input type")
    return EmbedRequest(
        model=fields.get("model") or "",
        keys=tuple(fields),
        inputs=tuple(inputs) if inputs != [""] else (),
        does_truncate=fields.get("truncate") is not False,
        dimensions=int(fields.get("dimensions") or 0),
        keep_alive_s=_keep_alive(fields),
        options=fields.get("options") or {},
    )


def _common(fields: dict[str, Any]) -> dict[str, Any]:
    top_logprobs = fields.get("top_logprobs") or 0
    if not 0 <= top_logprobs <= 20:
        raise BadRequest("top_logprobs must be between 0 and 20")
    return {
        "model": fields.get("model") or "",
        "keys": tuple(fields),
        "is_stream": fields.get("stream") is not False,
        "format": fields.get("format") or None,
        "keep_alive_s": _keep_alive(fields),
        "options": fields.get("options") or {},
        "think": _think(fields.get("think")),
        "does_truncate": fields.get("truncate") is not False,
        "does_shift": fields.get("shift"),
        "wants_logprobs": bool(fields.get("logprobs")),
        "top_logprobs": top_logprobs,
        "is_render_only": bool(fields.get("_debug_render_only")),
    }


def _keep_alive(fields: dict[str, Any]) -> float | None:
    value = fields.get("keep_alive")
    try:
        return None if value is None else parse_keep_alive(value)
    except BadDuration as exc:
        raise BadRequest(str(exc)) from exc


def _think(value: Any) -> bool | str | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _THINK_WORDS:
        return value
    if isinstance(value, str):
        raise BadRequest(f'invalid think value: "{value}" (must be "high", "medium", "low", "max", true, or false)')
    raise BadRequest('think must be a boolean or string ("high", "medium", "low", "max", true, or false)')


def _message(value: Any) -> Message:
    if not isinstance(value, dict):
        raise BadRequest(
            f"json: cannot unmarshal {_kind(value)} into Go struct field ChatRequest.messages of type api.Message"
        )
    fields = {str(key).lower(): each for key, each in value.items()}
    _check_types("ChatRequest.messages", fields, _MESSAGE_FIELDS)
    return Message(
        role=str(fields.get("role") or "").lower(),
        content=fields.get("content") or "",
        thinking=fields.get("thinking") or "",
        has_images=_check_images(fields.get("images")),
        tool_calls=tuple(_call_text(call) for call in fields.get("tool_calls") or ()),
    )


def _call_text(call: Any) -> str:
    function = call.get("function", {}) if isinstance(call, dict) else {}
    function = function if isinstance(function, dict) else {}
    fields = {"name": function.get("name"), "arguments": function.get("arguments")}
    return msgspec.json.encode(fields).decode()


def _check_images(images: Any) -> bool:
    for image in images or ():
        try:
            base64.b64decode(image if isinstance(image, str) else "*", validate=True)
        except (binascii.Error, ValueError) as exc:
            bad = re.search(r"[^A-Za-z0-9+/=]", str(image))
            raise BadRequest(f"illegal base64 data at input byte {bad.start() if bad else len(str(image))}") from exc
    return bool(images)


def _check_types(struct: str, fields: dict[str, Any], expected: dict[str, tuple[str, str]]) -> None:
    for name, (kind, go_type) in expected.items():
        value = fields.get(name)
        if value is not None and _kind(value) != kind:
            raise BadRequest(
                f"json: cannot unmarshal {_kind(value)} into Go struct field {struct}.{name} of type {go_type}"
            )


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")


def _syntax_error(body: bytes, text: str) -> str:
    if "truncated" in text:
        return "unexpected EOF"
    found = re.search(r"byte (\d+)", text)
    position = int(found[1]) if found else 0
    character = body[position : position + 1].decode("latin-1") or " "
    return f"invalid character '{character}' looking for beginning of value"
