"""What JetStream answers: acks and stored messages, as they come over the wire."""

import base64
from datetime import datetime
from typing import NamedTuple

import msgspec

from libs.common.bus.failures import NO_MESSAGE, Refused, refusal
from libs.common.bus.link import Headers, Message


class Stored(NamedTuple):
    """A message of a stream. `at_ms` is the server's timestamp."""

    subject: str
    sequence: int
    at_ms: int
    headers: Headers
    data: bytes


class Ack(NamedTuple):
    stream: str
    sequence: int


class _ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _PubAck(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    error: _ApiError | None = None


class _RawMessage(msgspec.Struct):
    subject: str
    seq: int
    time: str
    hdrs: str = ""
    data: str = ""


class _GetAnswer(msgspec.Struct):
    message: _RawMessage | None = None
    error: _ApiError | None = None


_pub_ack = msgspec.json.Decoder(_PubAck)
_get_answer = msgspec.json.Decoder(_GetAnswer)


def decode_ack(answer: bytes) -> Ack:
    """Of a publish. Raises Conflict, Full, Refused; msgspec.DecodeError when it is none."""
    ack = _pub_ack.decode(answer)
    if ack.error:
        raise refusal(ack.error.err_code, ack.error.description)
    return Ack(ack.stream, ack.seq)


def decode_stored(answer: bytes) -> Stored | None:
    """Of STREAM.MSG.GET; None: there is no such message. Raises Refused and kin, msgspec.DecodeError."""
    found = _get_answer.decode(answer)
    if found.error:
        if found.error.err_code == NO_MESSAGE:
            return None
        raise refusal(found.error.err_code, found.error.description)
    if found.message is None:
        raise Refused(0, "an answer without message or error")
    raw = found.message
    return Stored(
        raw.subject,
        raw.seq,
        parse_time_ms(raw.time),
        _parse_headers(base64.b64decode(raw.hdrs)),
        base64.b64decode(raw.data),
    )


def from_direct(message: Message) -> Stored:
    """Of a direct get (ADR-31): what was stored stands in the headers."""
    headers = message.headers
    return Stored(
        headers.get("Nats-Subject", ""),
        int(headers.get("Nats-Sequence", "0")),
        parse_time_ms(headers["Nats-Time-Stamp"]) if "Nats-Time-Stamp" in headers else 0,
        headers,
        message.data,
    )


def parse_time_ms(text: str) -> int:
    """A server's RFC 3339 time with nanoseconds, in milliseconds since the epoch."""
    return int(msgspec.convert(text, datetime).timestamp() * 1000)


def _parse_headers(block: bytes) -> Headers:
    """`NATS/1.0\\r\\nKey: value\\r\\n…` as stored; of a repeated key the last one."""
    found: Headers = {}
    for text in block.decode("utf-8", "replace").split("\r\n")[1:]:
        key, colon, value = text.partition(":")
        if colon:
            found[key] = value.strip()
    return found
