"""How records hang together: the hash of a record's bytes stands in the next one of the same writer."""

import functools
import hashlib
import ipaddress
from typing import NamedTuple

import msgspec

from libs.common.contracts.audit import AuditRecord
from libs.common.contracts.codec import encode

MAX_TEXT = 200  # characters of each text in a record: what strangers send must not make records large

START, STOP = "service.start", "service.stop"  # the first and the last record of an orderly life
CHECKPOINT = "trail.checkpoint"
CUT = "trail.cut"  # auth found that what it had signed is not there any more
CHECKPOINTS = "auth.checkpoint"  # the writer of checkpoints: all auth replicas together


class Link(NamedTuple):
    """Where a chain stands: what the next record continues from."""

    n: int = 0
    sequence: int = 0
    hash: str = ""


def digest(payload: bytes) -> str:
    """SHA-256 of a record's exact bytes, hex."""
    return hashlib.sha256(payload).hexdigest()


def chained(record: AuditRecord, last: Link, *, dropped: int = 0) -> bytes:
    """The bytes of `record` as the next of its chain."""
    linked = msgspec.structs.replace(record, n=last.n + 1, previous=last.hash, after=last.sequence, dropped=dropped)
    return encode(linked)


def clean(text: str) -> str:
    """One short line that can be encoded, whatever it was."""
    if len(text) <= MAX_TEXT and text.isprintable():
        return text
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_TEXT])


@functools.lru_cache(4096)
def clean_address(text: str) -> str:
    """An IP address, or nothing: a proxy passes on what a client wrote into its headers."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def writer_of(subject: str) -> str:
    """`audit.<service>.<writer>` → `<service>.<writer>`."""
    return subject.partition(".")[2]
