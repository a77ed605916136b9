"""The token log of one attempt (DESIGN §4): JSON lines, one event each; a position is a byte offset.

On the wire a chunk or segment is `<offset>|<bytes>`, offset = where the bytes begin in the log of that epoch.
A position that clients keep (the SSE id) is `<epoch>.<end offset of the last event seen>`.
"""

import re
from typing import Any, NamedTuple

import msgspec

from libs.common.contracts.codec import NO_JSON, Contract, Decoder, Malformed, encode
from libs.common.contracts.faults import Fault
from libs.common.states import JobState

MAX_CHUNK = 256 * 1024


class End(Contract, frozen=True, kw_only=True):
    """The last event. `final` is Ollama's final object without the text; None where Ollama sent none."""

    state: JobState
    final: dict[str, Any] | None = None
    fault: Fault | None = None


class Event(Contract, frozen=True, kw_only=True):
    """One line: exactly one of text, thinking, tool_call, data, end is there. `logprobs` rides with text."""

    text: str | None = None
    thinking: str | None = None
    tool_call: msgspec.Raw = NO_JSON
    data: msgspec.Raw = NO_JSON
    logprobs: msgspec.Raw = NO_JSON
    end: End | None = None


decode_event = Decoder(Event)


def line(event: Event) -> bytes:
    """The bytes of one event in the log, line end included."""
    return encode(event) + b"\n"


def frame(offset: int, log: bytes) -> bytes:
    return b"%d|%b" % (offset, log)


def parse_frame(payload: bytes) -> tuple[int, bytes]:
    """(offset, bytes). Raises Malformed."""
    offset, bar, log = payload.partition(b"|")
    if not bar or not offset.isdigit() or len(offset) > 15:
        raise Malformed("not a chunk: expected <offset>|<bytes>")
    return int(offset), log


class Position(NamedTuple):
    """Where a reader is: it has seen `offset` bytes of the log of `epoch`."""

    epoch: int
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.offset}"


START = Position(0, 0)

POSITION = re.compile(r"([0-9]{1,18})\.([0-9]{1,15})")


def parse_position(text: str) -> Position:
    """The reverse of str(Position). Raises Malformed."""
    found = POSITION.fullmatch(text.strip())
    if not found:
        raise Malformed("a position is <epoch>.<offset>, as the stream's id lines give it")
    return Position(int(found[1]), int(found[2]))


def whole_events(log: bytes) -> int:
    """The length of the longest prefix of `log` that ends with an event."""
    return log.rfind(b"\n") + 1
