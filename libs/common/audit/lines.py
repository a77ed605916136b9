"""The trail as lines of JSON, over HTTP and in exported files: `{"trail"}`, one `{"sequence", …, "record"}` each, `{"end"}`.

A record's bytes travel exactly: as they are when they are one JSON object, else in base64 as `bytes`.
"""

import base64
import binascii
from typing import Any, NamedTuple

import msgspec

from libs.common.audit.chain import writer_of
from libs.common.contracts.codec import Malformed

NO_RECORD = msgspec.Raw()


class Entry(NamedTuple):
    """A stored record. `data`: its exact bytes; `stored_ms`: the server's time."""

    sequence: int
    subject: str
    stored_ms: int
    data: bytes

    @property
    def writer(self) -> str:
        return writer_of(self.subject)


class Trail(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first line: records up to the sequence `after` are left out or have expired, `last` was the stream's newest."""

    after: int = 0
    last: int = 0
    expired: int = 0  # up to this sequence, because of their age or the stream's size
    since_ms: int | None = None
    until_ms: int | None = None
    kept: str = ""  # the newest signed statement, as auth keeps it beside the trail
    keys: list[dict[str, Any]] = []  # public parts of the signing keys, as JWKs


class End(msgspec.Struct, frozen=True, kw_only=True):
    """The last line: without it something was cut off. Everything in (`after`, `upto`] stands before it."""

    upto: int
    more: bool = False


class _Line(msgspec.Struct, omit_defaults=True):
    sequence: int = 0
    subject: str = ""
    stored_ms: int = 0
    record: msgspec.Raw = NO_RECORD
    bytes: str | None = None
    trail: Trail | None = None
    end: End | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Line)


def line_of(what: Entry | Trail | End) -> bytes:
    """With its newline."""
    if isinstance(what, Trail):
        made = _Line(trail=what)
    elif isinstance(what, End):
        made = _Line(end=what)
    else:
        made = _Line(sequence=what.sequence, subject=what.subject, stored_ms=what.stored_ms)
        if _travels_as_it_is(what.data):
            made.record = msgspec.Raw(what.data)
        else:
            made.bytes = base64.b64encode(what.data).decode()
    return _encoder.encode(made) + b"\n"


def read_line(line: bytes) -> Entry | Trail | End:
    """Raises Malformed."""
    try:
        read = _decoder.decode(line)
        if read.trail is not None:
            return read.trail
        if read.end is not None:
            return read.end
        data = bytes(read.record) if read.bytes is None else base64.b64decode(read.bytes, validate=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, binascii.Error) as error:
        raise Malformed("not a line of an audit trail") from error
    if read.sequence <= 0 or not read.subject:
        raise Malformed("not a line of an audit trail")
    return Entry(read.sequence, read.subject, read.stored_ms, data)


def _travels_as_it_is(data: bytes) -> bool:
    if not (data.startswith(b"{") and data.endswith(b"}")) or b"\n" in data or b"\r" in data:
        return False
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
