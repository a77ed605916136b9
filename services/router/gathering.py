"""What was shown of an epoch: the longest run of whole events that OUT and the watching gateways hold together. Pure."""

from collections.abc import Iterable

from libs.common.contracts.events import whole_events


def assemble(pieces: Iterable[tuple[int, bytes]], carried: bytes = b"") -> bytes:
    """Pieces of one log at their offsets → its longest known prefix of whole events; never shorter than `carried`.

    Pieces may overlap and repeat, in any order; all come from one append-only log, so overlaps hold the same bytes.
    """
    log = bytearray(carried)
    for offset, piece in sorted(pieces, key=lambda p: (p[0], -len(p[1]))):
        if offset > len(log):
            break
        log += piece[len(log) - offset :]
    return bytes(log[: max(len(carried), whole_events(bytes(log)))])
