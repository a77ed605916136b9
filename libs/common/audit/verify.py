"""Is the trail as it was written? Fed record by record in the order of the stream; needs nothing but public keys. No I/O.

What is compared: each writer's chain (`links`), the stream's sequences, which have no holes, and the signed checkpoints, which
say how far each chain had come: so that neither the end of a chain nor a whole one can be cut off or written anew.
"""

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from libs.common.audit.chain import CHECKPOINT, CHECKPOINTS, CUT, STOP, Link
from libs.common.audit.lines import Entry
from libs.common.audit.links import Chain, Item, Problem, Surroundings, item_of
from libs.common.audit.statements import open_statement
from libs.common.contracts.audit import AuditRecord, Head, Result, Statement
from libs.common.contracts.codec import encode

MAX_PROBLEMS = 1_000  # more add nothing; memory stays bounded
MAX_HOLES = 10_000
MAX_VOUCHED = 20_000


class Writer(msgspec.Struct, frozen=True, kw_only=True):
    """One chain. `ended`: a record says so; else it still runs, or ended without a word (kill -9, power)."""

    writer: str
    records: int
    first_n: int
    last_n: int
    last_ms: int
    ended: bool
    lost: int  # records that its process could not store, by its own word


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`problems` in the order of the stream. `checkpoint_upto`: what stands behind this sequence is held by its chains alone."""

    records: int
    first: int
    last: int
    writers: list[Writer]
    checkpoints: int
    checked: int  # of these, whose signature could be checked
    checkpoint_upto: int
    checkpoint_ms: int
    kid: str  # whose signature the newest checkpoint carries
    problems: list[Problem]


class Verifier:
    """`begin`: records up to this sequence have expired, or were left out on purpose."""

    def __init__(self, keys: Mapping[str, ECKey], begin: int = 0) -> None:
        self._keys = keys
        self._begin = begin
        self._around = Surroundings(begin, self._is_vouched, self._is_gone)
        self._next = begin + 1
        self._first = 0
        self._records = 0
        self._chains: dict[str, Chain] = {}
        self._lost: dict[str, int] = {}
        self._ended: set[str] = set()
        self._problems: list[Problem] = []
        self._named: set[int] = set()  # sequences that a problem names
        self._holes: dict[int, int] = {}  # a missing sequence → the server's time of the record behind it
        self._since_checkpoint: dict[int, tuple[str, Item]] = {}
        self._vouched: dict[int, str] = {}  # sequence → hash, by checkpoints
        self._heads: dict[str, Head] = {}
        self._upto = 0
        self._checkpoints = self._checked = 0
        self._newest: tuple[int, int, str, bool] | None = (
            None  # sequence, time, kid and whether checked, of a checkpoint
        )

    def add(self, entry: Entry) -> None:
        item = item_of(entry)
        if entry.sequence < self._next:
            self._say("inserted", entry.writer, item, "it stands behind a record that came later")
            return
        if self._next < entry.sequence:
            for missing in range(self._next, min(entry.sequence, self._next + MAX_HOLES - len(self._holes))):
                self._holes[missing] = entry.stored_ms
        self._next = entry.sequence + 1
        self._first = self._first or entry.sequence
        self._records += 1
        if item.record is not None:
            if item.record.action == CUT:
                self._say("cut off", entry.writer, item, f"says auth, here: {item.record.reason}")
            if item.record.action == STOP:
                self._ended.add(entry.writer)
            if item.record.dropped:
                self._lost[entry.writer] = self._lost.get(entry.writer, 0) + item.record.dropped
        if entry.writer == CHECKPOINTS:
            self._checkpoint(entry, item)
        else:
            if item.record is not None and item.record.statement:
                self._say("altered", entry.writer, item, "a checkpoint's statement stands in it")
            self._since_checkpoint[entry.sequence] = (entry.writer, item)
        chain = self._chains.setdefault(entry.writer, Chain(entry.writer, self._around))
        self._take(chain.add(item))

    def finish(self, upto: int | None = None, kept: str = "") -> Report:
        """`upto`: the sequence up to which records were to come. `kept`: a signed statement that was to be among them."""
        for chain in self._chains.values():
            self._take(chain.finish())
        for sequence in range(self._next, min((upto or 0) + 1, self._next + MAX_HOLES)):
            self._holes[sequence] = 0
        self._take(_holes({at: ms for at, ms in self._holes.items() if at not in self._named}))
        if self._newest and not self._newest[3] and self._keys:
            sequence, at_ms, kid, _ = self._newest
            text = f"its key {kid or '(none)'} is not one of those that count"
            self._take([Problem("unsigned", sequence, CHECKPOINTS, 0, at_ms, text)])
        self._take(list(self._cut(kept)))
        newest = self._newest or (0, 0, "", False)
        return Report(
            records=self._records,
            first=self._first,
            last=self._next - 1 if self._records else 0,
            writers=[self._writer(chain) for chain in self._chains.values()],
            checkpoints=self._checkpoints,
            checked=self._checked,
            checkpoint_upto=self._upto,
            checkpoint_ms=newest[1],
            kid=newest[2],
            problems=sorted(self._problems, key=lambda problem: problem.sequence or 1 << 62),
        )

    def _cut(self, kept: str) -> Iterator[Problem]:
        opened = open_statement(kept, self._keys)
        chain = self._chains.get(CHECKPOINTS)
        found = chain.last.n if chain is not None and chain.last is not None else 0
        if opened.checked and opened.statement is not None and opened.statement.n > found:
            statement = opened.statement
            text = f"auth signed that the trail reached sequence {statement.upto}; that checkpoint is not there"
            yield Problem("cut off", max(self._next, 1), CHECKPOINTS, statement.n, statement.at_ms, text)

    def _writer(self, chain: Chain) -> Writer:
        assert chain.first is not None
        assert chain.last is not None
        return Writer(
            writer=chain.writer,
            records=chain.records,
            first_n=chain.first.n,
            last_n=chain.last.n,
            last_ms=chain.last.stored_ms,
            ended=chain.writer in self._ended,
            lost=self._lost.get(chain.writer, 0),
        )

    def _is_vouched(self, sequence: int, hash_: str) -> bool | None:
        known = self._vouched.get(sequence)
        return None if known is None else known == hash_

    def _is_gone(self, sequence: int) -> bool:
        return sequence in self._holes or len(self._holes) >= MAX_HOLES

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _checkpoint(self, entry: Entry, item: Item) -> None:
        self._checkpoints += 1
        record = item.record
        if record is None:
            return  # its chain names it
        opened = open_statement(record.statement, self._keys)
        self._newest = (entry.sequence, entry.stored_ms, opened.kid, opened.checked)
        self._checked += opened.checked
        statement = opened.statement
        if statement is None or encode(checkpoint_record(statement, record.after, record.statement)) != entry.data:
            self._say("altered", CHECKPOINTS, item, opened.problem or "it is not what its statement says")
            self._vouched[entry.sequence] = ""
            return
        self._compare(statement)

    def _compare(self, statement: Statement) -> None:
        known = {head.writer: head for head in statement.heads}
        for head in statement.heads:
            if head.sequence <= self._begin or head.sequence <= self._upto:
                continue
            writer, item = self._since_checkpoint.get(head.sequence, ("", None))
            if item is None:
                text = "a checkpoint names it as the newest of its writer, and it is not there"
                self._take([Problem("missing", head.sequence, head.writer, head.n, statement.at_ms, text)])
            elif (writer, item.hash) != (head.writer, head.hash):
                before = self._heads.get(head.writer)
                doubt = f", and what stands between it and record {before.n if before else 0} is in doubt"
                self._say("altered", writer, item, f"a checkpoint knows another hash of it{doubt}")
            self._vouched[head.sequence] = head.hash
            self._heads[head.writer] = head
        for sequence, (writer, item) in list(self._since_checkpoint.items()):
            if sequence > statement.upto:
                break  # in the stream's order
            del self._since_checkpoint[sequence]
            if sequence > statement.since and (writer not in known or sequence > known[writer].sequence):
                self._say("inserted", writer, item, "the checkpoint after it does not know it")
        while len(self._vouched) > MAX_VOUCHED:
            del self._vouched[next(iter(self._vouched))]
        self._upto = max(self._upto, statement.upto)

    # -- problems ----------------------------------------------------------------------------------------------------

    def _say(self, kind: str, writer: str, item: Item, text: str) -> None:
        self._take([Problem(kind, item.sequence, writer, item.n, item.stored_ms, text)])  # type: ignore[arg-type]

    def _take(self, problems: list[Problem]) -> None:
        for problem in problems:
            if problem.sequence in self._named and problem.sequence:
                continue
            self._named.add(problem.sequence)
            if len(self._problems) < MAX_PROBLEMS:
                self._problems.append(problem)


def _holes(missing: dict[int, int]) -> list[Problem]:
    """One problem for each run of sequences."""
    problems = []
    for first in missing:
        if first - 1 in missing:
            continue
        last = first
        while last + 1 in missing:
            last += 1
        which = "a record is" if last == first else f"records up to sequence {last} are"
        text = f"{which} not there; whose, nothing says"
        problems.append(Problem("missing", first, "", 0, missing[last], text))
    return problems


def checkpoint_record(statement: Statement, after: int, signed: str) -> AuditRecord:
    """The record around a statement; nothing else stands in it."""
    return AuditRecord(
        n=statement.n,
        previous=statement.previous,
        after=after,
        at_ms=statement.at_ms,
        action=CHECKPOINT,
        result=Result.ALLOWED,
        statement=signed,
    )


def next_checkpoint(newest: Entry | None, statement: Statement) -> tuple[Statement, Link]:
    """`statement` as the next of the checkpoints' chain, and where it continues."""
    if newest is None:
        return statement, Link()
    item = item_of(newest)
    link = Link(item.n, newest.sequence, item.hash)
    return msgspec.structs.replace(statement, n=link.n + 1, previous=link.hash), link


def public_keys(keys: Iterable[dict[str, object]]) -> dict[str, ECKey]:
    """Keys of a JWKS by their kid; what is no key of ours is left out."""
    found = {}
    for key in keys:
        try:
            made = ECKey.import_key(key)  # type: ignore[arg-type]
        except (JoseError, ValueError, LookupError, TypeError):  # all that joserfc makes of a wrong member
            continue
        found[str(key.get("kid", ""))] = made
    return found
