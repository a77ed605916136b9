"""Server-sent events (WHATWG HTML §9.2): bytes out. Pure. Data never holds a bare CR or LF: JSON escapes both in strings, LF
ends an event of the log, and a CR that a node wrote between two JSON tokens becomes a space, as long and as meaningless."""

from collections.abc import Iterator

from libs.common.contracts.codec import encode
from libs.common.contracts.events import Position, decode_event

PING = b": ping\n\n"
END_PREFIX = b'{"end":'  # `end` is the only field of its event


def state_frame(event: str, data: bytes) -> bytes:
    """A change of state; it carries no id, so that a reader's position stays where it was."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data)


def log_frames(position: Position, events: bytes) -> bytes:
    """Whole events of a log from `position` on → frames; the same bytes whether live, caught up, or replayed."""
    frames = []
    for end, raw in positions(position, events):
        if raw.startswith(END_PREFIX):
            event = decode_event(raw)
            assert event.end is not None
            frames.append(b"id: %b\nevent: %b\ndata: %b\n\n" % (end, str(event.end.state).encode(), encode(event.end)))
        else:
            frames.append(b"id: %b\nevent: token\ndata: %b\n\n" % (end, raw))
    return b"".join(frames)


def positions(position: Position, events: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each event with the position after it, as the SSE id has it."""
    epoch, offset = position
    if b"\r" in events:
        events = events.replace(b"\r", b" ")
    for raw in events.split(b"\n")[:-1]:
        offset += len(raw) + 1
        yield b"%d.%d" % (epoch, offset), raw


def data_frame(data: bytes, position: bytes | None = None) -> bytes:
    """One unnamed event, as OpenAI's streams have it, with the job's position if it can be resumed."""
    return b"data: %b\n\n" % data if position is None else b"id: %b\ndata: %b\n\n" % (position, data)
