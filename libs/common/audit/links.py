"""One writer's chain, record by record: what fits, and when something does not, which record it is that was changed.

A record is known by three things: the hash that its successor keeps of it, its own `n`, and where the record before it stood
(`after`). So a changed record is told from its neighbours by what they say of each other, at most a few records later.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from libs.common.audit.chain import Link, digest
from libs.common.audit.lines import Entry
from libs.common.contracts.audit import AuditRecord, decode_audit
from libs.common.contracts.codec import Malformed

Kind = Literal["altered", "missing", "inserted", "unsigned", "cut off"]

# Does a checkpoint say that the record at this sequence has this hash? None: no checkpoint speaks of it.
Vouched = Callable[[int, str], bool | None]


class Surroundings(NamedTuple):
    """What a chain cannot know by itself. `begin`: records up to this sequence have expired or were left out.
    `is_gone`: does nothing stand at this sequence?"""

    begin: int
    vouched: Vouched
    is_gone: Callable[[int], bool]


PATIENCE = 3  # records that may wait for a verdict; later ones say what the earlier ones were


class Problem(NamedTuple):
    """`sequence` 0: not known. `writer` empty: not known; `n` 0 then."""

    kind: Kind
    sequence: int
    writer: str
    n: int
    at_ms: int
    text: str


class Item(NamedTuple):
    """A record as it stands. `record` None: unreadable."""

    sequence: int
    hash: str
    stored_ms: int
    record: AuditRecord | None

    @property
    def n(self) -> int:
        return self.record.n if self.record else 0

    @property
    def after(self) -> int:
        return self.record.after if self.record else -1

    @property
    def link(self) -> Link:
        return Link(self.n, self.sequence, self.hash)


def item_of(entry: Entry) -> Item:
    try:
        record = decode_audit(entry.data)
    except Malformed:
        record = None
    return Item(entry.sequence, digest(entry.data), entry.stored_ms, record)


def follows(item: Item, last: Link) -> bool:
    """Is `item` what was written after `last`?"""
    record = item.record
    return record is not None and (record.n, record.previous, record.after) == (last.n + 1, last.hash, last.sequence)


class Verdict(NamedTuple):
    """On the records that wait: what is wrong, how many of them are dealt with, and where the chain goes on.
    `wild`: the record there was changed, so its hash says nothing about the next one."""

    problems: list[Problem]
    settled: int
    good: Link
    wild: bool = False


def judge(writer: str, before: Link | None, good: Link, pending: list[Item], around: Surroundings) -> Verdict:
    """`pending[0]` does not follow `good`, which follows `before`."""

    def about(kind: Kind, item: Item, text: str, n: int | None = None) -> Problem:
        return Problem(kind, item.sequence, writer, item.n if n is None else n, item.stored_ms, text)

    def inserted(items: list[Item]) -> list[Problem]:
        return [about("inserted", item, "the records around it belong together without it") for item in items]

    def skips(item: Item) -> bool:
        """Does it continue a record that is not there?"""
        return item.after > max(good.sequence, around.begin) and around.is_gone(item.after)

    vouched, begin = around.vouched, around.begin
    first = pending[0]
    follower = pending[1] if len(pending) > 1 else None
    fits = next((at for at, item in enumerate(pending) if follows(item, good)), None)
    if fits is not None:
        return Verdict(inserted(pending[:fits]), fits + 1, pending[fits].link)
    fork = next((at for at, item in enumerate(pending) if before is not None and follows(item, before)), None)
    if fork is not None:
        rival = pending[fork]
        if vouched(rival.sequence, rival.hash) or any(follows(item, rival.link) for item in pending[fork + 1 :]):
            text = f"sequence {rival.sequence} is the true record {rival.n}"
            false = Problem("inserted", good.sequence, writer, good.n, rival.stored_ms, text)
            return Verdict([false, *inserted(pending[:fork])], fork + 1, rival.link)
        return Verdict(inserted(pending[: fork + 1]), fork + 1, good)
    if vouched(first.sequence, first.hash) or (follower is not None and follows(follower, first.link)):
        if good.n and first.after == good.sequence:
            text = f"the next one, sequence {first.sequence}, knows another hash of it"
            return Verdict([Problem("altered", good.sequence, writer, good.n, first.stored_ms, text)], 1, first.link)
        if skips(first):
            return Verdict([_missing(writer, good, first, begin)], 1, first.link)
        return Verdict([about("inserted", first, f"it does not continue record {good.n}")], 1, first.link)
    if follower is None and first.record is not None:
        is_first_to_blame = vouched(good.sequence, good.hash) or vouched(first.sequence, first.hash) is False
        if good.n and (first.n, first.after) == (good.n + 1, good.sequence) and not is_first_to_blame:
            text = f"it, or what the next one, sequence {first.sequence}, says of it"
            return Verdict([Problem("altered", good.sequence, writer, good.n, first.stored_ms, text)], 1, first.link)
        if first.n > good.n + 1 and skips(first):
            return Verdict([_missing(writer, good, first, begin)], 1, first.link)
    text = "it is unreadable" if first.record is None else "the records around it say something else of it"
    return Verdict(
        [about("altered", first, text, good.n + 1)], 1, Link(good.n + 1, first.sequence, first.hash), wild=True
    )


def _missing(writer: str, good: Link, found: Item, begin: int) -> Problem:
    count = 1 if begin and not good.n else max(1, found.n - good.n - 1)
    text = f"{'one record is' if count == 1 else f'{count} records are'} not there, the last of them at {found.after}"
    return Problem("missing", found.after, writer, found.n - count, found.stored_ms, text)


class Chain:
    def __init__(self, writer: str, around: Surroundings) -> None:
        self.writer = writer
        self.first: Item | None = None
        self.last: Item | None = None
        self.records = 0
        self._around = around
        self._before: Link | None = None  # what the newest good record follows
        self._good = Link()
        self._wild = False
        self._pending: list[Item] = []

    def add(self, item: Item) -> list[Problem]:
        self.records += 1
        self.first = self.first or item
        self.last = item
        self._place(item)
        return self._settle() if len(self._pending) >= PATIENCE else []

    def finish(self) -> list[Problem]:
        problems = []
        while self._pending:
            problems += self._settle()
        return problems

    def _place(self, item: Item) -> None:
        if self._pending:
            self._pending.append(item)
        elif follows(item, self._good) or self._begins_here(item) or (self._wild and item.after == self._good.sequence):
            self._before, self._good, self._wild = self._good, item.link, False
        else:
            self._pending.append(item)

    def _begins_here(self, item: Item) -> bool:
        """The first that is left of a chain whose beginning has expired."""
        return self._before is None and not self._good.n and item.n > 1 and 0 < item.after <= self._around.begin

    def _settle(self) -> list[Problem]:
        verdict = judge(self.writer, self._before, self._good, self._pending, self._around)
        rest, self._pending = self._pending[verdict.settled :], []
        if verdict.good != self._good:
            self._before, self._good = self._good, verdict.good
        self._wild = verdict.wild
        for item in rest:
            self._place(item)
        return verdict.problems
