"""What a stream yields. Pure. Each event says at which position a stream goes on after it."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from libs.client.errors import Fault
from libs.common.contracts.codec import Malformed


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    position: str
    logprobs: Any = None


@dataclass(frozen=True, slots=True)
class Thinking:
    text: str
    position: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`call` as Ollama gives it: `{"function": {"name", "arguments"}}`."""

    call: Any
    position: str


@dataclass(frozen=True, slots=True)
class Data:
    """Embeddings, and whatever later versions add."""

    data: Any
    position: str


@dataclass(frozen=True, slots=True)
class Reset:
    """What was shown so far is void; the answer begins anew. Only for who asked for it."""

    position: str = "0.0"


StreamEvent: TypeAlias = Text | Thinking | ToolCall | Data | Reset


class End(msgspec.Struct):
    """The last line of a log. `final`: Ollama's final object without the text."""

    state: str
    final: dict[str, Any] | None = None
    fault: Fault | None = None


class _Line(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    tool_call: Any = None
    data: Any = None
    logprobs: Any = None
    end: End | None = None


_decode = msgspec.json.Decoder(_Line).decode


def event_of(raw: bytes, position: str) -> StreamEvent | End | None:
    """One line of a log; None for a kind that this version does not know. Raises Malformed."""
    try:
        line = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed("not an event of a token log") from error
    if line.text is not None:
        return Text(line.text, position, line.logprobs)
    if line.thinking is not None:
        return Thinking(line.thinking, position)
    if line.tool_call is not None:
        return ToolCall(line.tool_call, position)
    if line.data is not None:
        return Data(line.data, position)
    return line.end
