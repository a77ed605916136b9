"""Between our requests and events and Ollama's API. Pure; tested against recorded traffic of a real server.

Sources: Ollama `api/types.go`; ollama-facts.md §1.2, §1.3, §1.9.
"""

from typing import Any

import msgspec

from libs.common.contracts.codec import NO_JSON, Malformed
from libs.common.contracts.events import Event
from libs.common.contracts.jobs import Timings, Usage
from libs.common.contracts.requests import Kind, Request

PATHS = {Kind.CHAT: "/api/chat", Kind.GENERATE: "/api/generate", Kind.EMBED: "/api/embed"}

_FIELDS = {
    Kind.CHAT: ("messages", "tools", "format", "think", "options", "truncate", "logprobs", "top_logprobs"),
    Kind.GENERATE: (
        "prompt", "suffix", "system", "template", "raw", "images", "format", "think", "options", "truncate",
        "logprobs", "top_logprobs",
    ),
    Kind.EMBED: ("input", "truncate", "dimensions", "options"),
}  # fmt: skip


class _Message(msgspec.Struct):
    content: str = ""
    thinking: str = ""
    tool_calls: list[msgspec.Raw] = []


class _Line(msgspec.Struct):
    """One line of /api/chat or /api/generate, the fields that are not the final object's."""

    message: _Message | None = None
    response: str = ""
    thinking: str = ""
    tool_calls: list[msgspec.Raw] = []
    logprobs: msgspec.Raw = NO_JSON
    done: bool = False
    error: msgspec.Raw = NO_JSON


_decode_line = msgspec.json.Decoder(_Line)
_TEXT_FIELDS = ("message", "response", "thinking", "tool_calls", "logprobs", "embeddings")


class NodeSaid(Exception):
    """Ollama reported an error in the middle of a stream (its last line is `{"error": …}`; the status stays 200)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def ollama_request(
    kind: Kind,
    request: Request,
    *,
    keep_alive: str | int | None = None,
    num_ctx: int | None = None,
    whole: bool = False,
) -> tuple[str, bytes]:
    """(path, body). What the router decided for the node wins over what the client asked for. `whole`: a prompt that does not
    fit the context is refused, unless the client said that it may be cut; Ollama's default is to cut it silently (§2.3)."""
    body: dict[str, Any] = {"model": request.model}
    for name in _FIELDS[kind]:
        value = getattr(request, name)
        if value is not None and value != NO_JSON:
            body[name] = value
    if kind is not Kind.EMBED:
        body["stream"] = True
        if whole:
            body.setdefault("truncate", False)
    if num_ctx is not None:
        body["options"] = {**body.get("options", {}), "num_ctx": num_ctx}
    if keep_alive is not None:
        body["keep_alive"] = keep_alive
    return PATHS[kind], msgspec.json.encode(body)


def events_of_line(raw: bytes) -> tuple[list[Event], dict[str, Any] | None]:
    """The events of one streamed line, and Ollama's final object without its text if this was the last line.

    Raises NodeSaid for an error line, Malformed for what is no line of Ollama's.
    """
    try:
        line = _decode_line.decode(raw)
        if line.error:
            raise NodeSaid(_error_text(line.error))
        final = None
        if line.done:
            final = {k: v for k, v in msgspec.json.decode(raw).items() if k not in _TEXT_FIELDS}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed("the node sent a line that is not Ollama's") from error
    thinking, text, calls = line.thinking, line.response, line.tool_calls
    if line.message is not None:
        thinking, text, calls = line.message.thinking, line.message.content, line.message.tool_calls
    events = []
    if thinking:
        events.append(Event(thinking=thinking))
    if text or (line.logprobs and not thinking):
        events.append(Event(text=text, logprobs=line.logprobs))
    events += [Event(tool_call=call) for call in calls]
    return events, final


def events_of_embedding(raw: bytes) -> tuple[list[Event], dict[str, Any]]:
    """The one event of /api/embed's answer, and the rest of it. Raises Malformed."""
    try:
        answer = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        embeddings = answer.pop("embeddings")
        if b"\n" in bytes(embeddings) or b"\r" in bytes(
            embeddings
        ):  # from a node that prints prettily: an event is one line
            embeddings = msgspec.Raw(msgspec.json.encode(msgspec.json.decode(embeddings)))
        final = {name: msgspec.json.decode(value) for name, value in answer.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
        raise Malformed("the node's answer is not Ollama's") from error
    return [Event(data=embeddings)], final


def usage_of(final: dict[str, Any]) -> Usage:
    return Usage(prompt_tokens=final.get("prompt_eval_count") or 0, completion_tokens=final.get("eval_count") or 0)


def timings_of(final: dict[str, Any], *, wait_s: float | None, first_token_s: float | None) -> Timings:
    """Ollama's nanoseconds in seconds."""

    def seconds(name: str) -> float | None:
        value = final.get(name)
        return value / 1e9 if isinstance(value, int | float) else None

    return Timings(
        wait=wait_s,
        first_token=first_token_s,
        load=seconds("load_duration"),
        prefill=seconds("prompt_eval_duration"),
        decode=seconds("eval_duration"),
        total=seconds("total_duration"),
    )


MAX_ERROR_TEXT = 2000  # it travels in a header and stays with the job; a crashed engine hands over all it ever logged


def error_text(body: bytes) -> str:
    """The text of a native error body `{"error": "…"}`, unpacked when it is the engine's JSON in a string."""
    try:
        return _error_text(msgspec.json.decode(body, type=dict[str, msgspec.Raw])["error"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return "an answer that is not Ollama's" if body else "an empty answer"


def _error_text(raw: msgspec.Raw) -> str:
    text = _unpacked(msgspec.json.decode(raw))
    return text if len(text) <= MAX_ERROR_TEXT else f"{text[:MAX_ERROR_TEXT]} …"


def _unpacked(value: Any) -> str:
    for _ in range(3):
        if isinstance(value, str):
            try:
                value = msgspec.json.decode(value)
            except msgspec.DecodeError:
                return str(value)
        elif isinstance(value, dict):
            value = value.get("error") or value.get("message") or str(value)
        else:
            break
    return str(value)
