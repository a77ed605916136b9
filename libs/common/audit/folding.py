"""Equal records within a minute become two: the first at once, and one that says how many followed. No I/O, no clock.

So a flood of refusals, or a client's thousand jobs, cannot fill the stream. What strangers can vary (addresses, key ids)
is bounded, too: beyond MAX_REFUSED kinds a minute, refusals of one action are counted together.
"""

from collections import Counter
from collections.abc import Hashable

import msgspec

from libs.common.contracts.audit import AuditRecord, Result

WINDOW_MS = 60_000
MAX_REFUSED, MAX_OTHERS = 100, 5_000  # kinds of one action in a window
TOO_MANY = "several: too many kinds in one minute"


class _Window(msgspec.Struct):
    began_ms: int
    action: str
    latest: AuditRecord
    count: int = 0


class Folding:
    def __init__(self) -> None:
        self._windows: dict[Hashable, _Window] = {}
        self._kinds: Counter[str] = Counter()

    def add(self, record: AuditRecord) -> AuditRecord | None:
        """The record to write now, if it is the first of its kind; others are counted."""
        key = _kind(record)
        if key not in self._windows:
            limit = MAX_REFUSED if record.result is Result.DENIED else MAX_OTHERS
            if self._kinds[record.action] >= limit:
                record = AuditRecord(
                    n=0, at_ms=record.at_ms, action=record.action, result=record.result, reason=TOO_MANY
                )
                key = _kind(record)
        if (window := self._windows.get(key)) is not None:
            window.count += 1
            window.latest = record
            return None
        self._windows[key] = _Window(record.at_ms, record.action, record)
        self._kinds[record.action] += 1
        return record

    def due(self, now_ms: int, *, all_of_them: bool = False) -> list[AuditRecord]:
        """What was counted in windows that are over. A kind that went on gets another window."""
        told = []
        for key, window in list(self._windows.items()):
            if now_ms - window.began_ms < WINDOW_MS and not all_of_them:
                continue
            if window.count:
                told.append(msgspec.structs.replace(window.latest, count=window.count))
                window.began_ms, window.count = now_ms, 0
            else:
                del self._windows[key]
                self._kinds[window.action] -= 1
                if not self._kinds[window.action]:
                    del self._kinds[window.action]
        return told


def _kind(record: AuditRecord) -> Hashable:
    """All that tells records apart but their time and request."""
    return (
        record.action, record.result, record.actor, record.credential, record.address, record.target, record.reason,
    )  # fmt: skip
