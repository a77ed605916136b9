"""Whatever is changed in a trail, the verifier finds it, and names the record."""

import json
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey

from libs.common.audit.chain import CHECKPOINTS, START, STOP, Link, chained, digest
from libs.common.audit.heads import Heads
from libs.common.audit.lines import End, Entry, Trail, line_of, read_line
from libs.common.audit.statements import open_statement, sign
from libs.common.audit.verify import Report, Verifier, checkpoint_record, next_checkpoint, public_keys
from libs.common.contracts.audit import AuditRecord, Result, Statement
from libs.common.contracts.codec import Malformed, encode

KEY = ECKey.generate_key("P-256", {"alg": "ES256", "use": "sig"}, auto_kid=True)
OTHER_KEY = ECKey.generate_key("P-256", {"alg": "ES256", "use": "sig"}, auto_kid=True)
KEYS = public_keys([dict(KEY.as_dict(private=False))])


class Book:
    """A trail being written."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.links: dict[str, Link] = {}
        self.heads = Heads()

    def write(self, writer: str, action: str = "model.pull", **more) -> Entry:
        record = AuditRecord(n=0, at_ms=self.now, action=action, result=Result.ALLOWED, **more)
        link = self.links.get(writer, Link())
        data = chained(record, link)
        entry = self._store(f"audit.{writer}", data)
        self.links[writer] = Link(link.n + 1, entry.sequence, digest(data))
        return entry

    def checkpoint(self, key: ECKey = KEY) -> None:
        if not self.heads.has_news:
            return
        newest = next((entry for entry in reversed(self.entries) if entry.writer == CHECKPOINTS), None)
        since, upto, heads = self.heads.statement_part()
        statement, link = next_checkpoint(newest, Statement(n=1, at_ms=self.now, since=since, upto=upto, heads=heads))
        self._store(f"audit.{CHECKPOINTS}", encode(checkpoint_record(statement, link.sequence, sign(statement, key))))
        self.heads.told(upto)

    @property
    def now(self) -> int:
        return 1_790_000_000_000 + len(self.entries)

    def _store(self, subject: str, data: bytes) -> Entry:
        entry = Entry(len(self.entries) + 1, subject, self.now, data)
        self.entries.append(entry)
        self.heads.add(subject, entry.sequence, data)
        return entry


def verify(entries: list[Entry], upto: int | None = None, begin: int = 0, keys=KEYS) -> Report:
    verifier = Verifier(keys, begin)
    for entry in entries:
        verifier.add(entry)
    return verifier.finish(upto)


WRITERS = ("auth.a", "gateway.b", "gateway.c")
steps = st.lists(st.one_of(st.sampled_from(WRITERS), st.just("checkpoint")), min_size=1, max_size=25)


def written(story: list[str]) -> list[Entry]:
    """Ends with a checkpoint: what stands behind the last one is held by its successors only."""
    book = Book()
    book.write(WRITERS[0], START)
    for step in story:
        if step == "checkpoint":
            book.checkpoint()
        else:
            book.write(step, target=f"t{len(book.entries)}")
    book.checkpoint()
    return book.entries


books = steps.map(written)


class Change(NamedTuple):
    entries: list[Entry]
    sequence: int  # of what was changed
    what: str


def edited(data: bytes, draw) -> bytes:
    how = draw(st.sampled_from(["byte", "field", "space", "cut"]))
    if how == "byte":
        at = draw(st.integers(0, len(data) - 1))
        return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
    if how == "space":
        return data + b" "
    if how == "cut":
        return data[: draw(st.integers(0, len(data) - 1))]
    fields = json.loads(data)
    field = draw(st.sampled_from(sorted(fields)))
    value = fields[field]
    fields[field] = value + draw(st.integers(1, 60)) if isinstance(value, int) else value + "x"
    return json.dumps(fields, separators=(",", ":")).encode()


@given(st.data(), books)
def test_any_single_edit_is_named(data, entries):
    at = data.draw(st.integers(0, len(entries) - 1))
    changed = edited(entries[at].data, data.draw)
    if changed == entries[at].data:
        return
    found = verify([*entries[:at], entries[at]._replace(data=changed), *entries[at + 1 :]], len(entries))

    assert found.problems, changed
    assert found.problems[0].sequence == entries[at].sequence, found.problems
    assert found.problems[0].writer == entries[at].writer
    assert found.problems[0].kind in ("altered", "unsigned")  # a key's name changed: nobody knows that key
    assert {problem.sequence for problem in found.problems} == {entries[at].sequence}, found.problems


@given(st.data(), books)
def test_any_single_deletion_is_named(data, entries):
    at = data.draw(st.integers(0, len(entries) - 1))
    gone = entries[at]
    found = verify([*entries[:at], *entries[at + 1 :]], len(entries))

    (problem,) = found.problems
    assert (problem.kind, problem.sequence) == ("missing", gone.sequence)
    is_last = at == len(entries) - 1  # a checkpoint: nothing but the stream's length speaks of it
    assert is_last or problem.writer == gone.writer
    assert is_last or problem.n == json.loads(gone.data)["n"]


@given(st.data(), books)
def test_any_single_insertion_is_named(data, entries):
    """Into a copy: its sequence is one that is there already."""
    at = data.draw(st.integers(0, len(entries) - 1))
    model = data.draw(st.sampled_from(entries))
    writer = data.draw(st.sampled_from([entry.subject for entry in entries] + ["audit.gateway.x"]))
    forged = Entry(
        entries[at].sequence, writer, 1, edited(model.data, data.draw) if data.draw(st.booleans()) else model.data
    )
    found = verify([*entries[: at + 1], forged, *entries[at + 1 :]], len(entries))

    assert [(problem.kind, problem.sequence) for problem in found.problems] == [("inserted", entries[at].sequence)]


@given(st.data(), books)
def test_an_insertion_with_everything_behind_it_renumbered_is_found(data, entries):
    """In the store, everything behind it renumbered: as if it had been written then, perfectly linked to its writer's chain."""
    at = data.draw(st.integers(0, len(entries) - 2))  # up to where the last checkpoint speaks
    writer = data.draw(st.sampled_from([*WRITERS, "gateway.x"]))
    before = [entry for entry in entries[:at] if entry.writer == writer]
    n, previous, after = (
        (json.loads(before[-1].data)["n"], digest(before[-1].data), before[-1].sequence) if before else (0, "", 0)
    )
    forged = AuditRecord(
        n=n + 1, previous=previous, after=after, at_ms=1, action="client.create", result=Result.ALLOWED
    )
    moved = [entry._replace(sequence=entry.sequence + 1) for entry in entries[at:]]
    found = verify([*entries[:at], Entry(at + 1, f"audit.{writer}", 1, encode(forged)), *moved], len(entries) + 1)

    assert found.problems
    assert found.problems[0].sequence > at, found.problems


@given(st.data(), books)
def test_a_deletion_with_everything_behind_it_renumbered_is_found(data, entries):
    at = data.draw(st.integers(0, len(entries) - 2))
    moved = [entry._replace(sequence=entry.sequence - 1) for entry in entries[at + 1 :]]
    found = verify([*entries[:at], *moved])

    assert found.problems
    assert found.problems[0].sequence >= entries[at].sequence, found.problems


@given(st.data(), books)
def test_any_swap_is_named(data, entries):
    one, other = sorted(data.draw(st.tuples(*[st.integers(0, len(entries) - 1)] * 2)))
    if one == other:
        return
    changed = list(entries)
    changed[one] = entries[one]._replace(data=entries[other].data)
    changed[other] = entries[other]._replace(data=entries[one].data)
    found = verify(changed, len(entries))

    assert found.problems
    assert found.problems[0].sequence == entries[one].sequence, found.problems


@given(st.data(), books)
def test_a_chain_written_anew_is_named(data, entries):
    """From one record on, with every hash right: only the checkpoints know better."""
    at = data.draw(st.sampled_from([n for n, entry in enumerate(entries) if entry.writer != CHECKPOINTS]))
    writer, link, changed = entries[at].writer, Link(), list(entries)
    for n, entry in enumerate(entries):
        if entry.writer != writer:
            continue
        record = msgspec.json.decode(entry.data, type=AuditRecord)
        if n == at:
            record = msgspec.structs.replace(record, actor="somebody else")
        made = chained(record, link)
        link = Link(link.n + 1, entry.sequence, digest(made))
        changed[n] = entry._replace(data=made)
    found = verify(changed, len(entries))

    assert found.problems
    assert found.problems[0].writer == writer
    assert found.problems[0].sequence >= entries[at].sequence


@given(st.data(), books)
def test_a_tail_cut_off_is_found_when_a_checkpoint_remains(data, entries):
    """Records vanish from the end of one chain, or all of it; the sequences are as if they had never been."""
    writer = data.draw(st.sampled_from(sorted({entry.writer for entry in entries} - {CHECKPOINTS})))
    own = [entry for entry in entries if entry.writer == writer]
    gone = own[data.draw(st.integers(0, len(own) - 1)) :]
    found = verify([entry for entry in entries if entry not in gone], len(entries))

    assert found.problems
    assert found.problems[0].kind == "missing"
    assert found.problems[0].sequence == gone[0].sequence


@given(books, st.data())
def test_what_is_as_it_was_written_passes_from_any_beginning_to_any_end(entries, data):
    begin = data.draw(st.integers(0, len(entries) - 1))
    end = data.draw(st.integers(begin + 1, len(entries)))
    found = verify(entries[begin:end], end, begin)

    assert found.problems == []
    assert (found.first, found.last, found.records) == (begin + 1, end, end - begin)
    assert found.checked == found.checkpoints


@given(books)
def test_lines_carry_records_exactly(entries):
    for entry in entries:
        assert read_line(line_of(entry)) == entry


@given(st.binary(max_size=60))
def test_lines_carry_any_bytes_exactly(data):
    entry = Entry(1, "audit.a.b", 1, data)
    assert line_of(entry).count(b"\n") == 1
    assert read_line(line_of(entry)) == entry


@pytest.mark.parametrize(
    "data", [b'{"n":1} ', b' {"n":1}', b'{"n":\n1}', b'{"a":1,"a":2}', b'{"n":1}}', b"{}", b"\xff"]
)
def test_lines_carry_odd_bytes_exactly(data):
    assert read_line(line_of(Entry(1, "audit.a.b", 1, data))) == Entry(1, "audit.a.b", 1, data)


def test_the_lines_around_records():
    trail, end = Trail(after=3, last=9, keys=[{"kid": "a"}]), End(upto=9, more=True)
    assert (read_line(line_of(trail)), read_line(line_of(end))) == (trail, end)
    for wrong in (b"", b"{}", b"[]", b'{"sequence":1}', b'{"sequence":1,"subject":"a","bytes":"*"}', b"\xff"):
        with pytest.raises(Malformed):
            read_line(wrong)


def test_a_life_that_ended_without_a_word_is_told_and_is_no_problem():
    book = Book()
    book.write("gateway.b", START)
    book.write("gateway.b")
    book.write("gateway.c", START, dropped=0)
    book.write("gateway.c", STOP)
    book.checkpoint()
    found = verify(book.entries)

    assert found.problems == []
    assert {writer.writer: writer.ended for writer in found.writers} == {
        "gateway.b": False, "gateway.c": True, CHECKPOINTS: False,
    }  # fmt: skip


def test_checkpoints_of_a_key_that_does_not_count_are_found():
    book = Book()
    book.write("gateway.b")
    book.checkpoint(OTHER_KEY)
    assert [problem.kind for problem in verify(book.entries).problems] == ["unsigned"]
    assert verify(book.entries, keys={}).problems == []  # without keys nothing is said of signatures
    book.write("gateway.b")
    book.checkpoint(KEY)  # whose checkpoint continues the other one: the key was changed between them
    assert verify(book.entries).problems == []


def test_a_statement_put_into_another_place_is_found():
    book = Book()
    book.write("gateway.b")
    book.checkpoint()
    book.write("gateway.b")
    book.checkpoint()
    first, second = (entry for entry in book.entries if entry.writer == CHECKPOINTS)
    record = msgspec.json.decode(second.data, type=AuditRecord)
    old = msgspec.json.decode(first.data, type=AuditRecord).statement
    moved = msgspec.structs.replace(record, statement=old)
    found = verify([*book.entries[:-1], second._replace(data=encode(moved))])

    assert [(problem.kind, problem.sequence) for problem in found.problems] == [("altered", second.sequence)]


def foreign(book: Book, writer: str, record: AuditRecord) -> Entry:
    """Somebody else's record in the stream: its writer does not know it."""
    entry = Entry(len(book.entries) + 1, f"audit.{writer}", book.now, encode(record))
    book.entries.append(entry)
    return entry


def forged(book: Book, writer: str, **more) -> AuditRecord:
    """As the writer itself would have written it next."""
    link = book.links.get(writer, Link())
    facts = {"n": link.n + 1, "previous": link.hash, "after": link.sequence, **more}
    return AuditRecord(at_ms=book.now, action="client.create", result=Result.ALLOWED, **facts)


@pytest.mark.parametrize("later", [0, 1, 4])
def test_a_record_put_in_before_the_true_one_is_the_inserted_one(later):
    """Two records say that they follow the same one; whichever is followed is true, whoever came first."""
    book = Book()
    for _ in range(3):
        book.write("gateway.b")
    false = foreign(book, "gateway.b", forged(book, "gateway.b"))
    book.write("gateway.b")
    for _ in range(later):
        book.write("gateway.b")
    book.checkpoint()
    found = verify(book.entries, len(book.entries))

    assert [(problem.kind, problem.sequence) for problem in found.problems] == [("inserted", false.sequence)]


@pytest.mark.parametrize("later", [0, 1, 4])
def test_a_record_put_in_behind_the_true_one_is_the_inserted_one(later):
    book = Book()
    for _ in range(3):
        book.write("gateway.b")
    copy = forged(book, "gateway.b")
    book.write("gateway.b")
    false = foreign(book, "gateway.b", copy)
    for _ in range(later):
        book.write("gateway.b")
    book.checkpoint()
    found = verify(book.entries, len(book.entries))

    assert [(problem.kind, problem.sequence) for problem in found.problems] == [("inserted", false.sequence)]


def test_a_whole_chain_put_in_is_found_by_the_checkpoint_that_does_not_know_it():
    book = Book()
    book.write("gateway.b")
    false = foreign(book, "gateway.x", AuditRecord(n=1, at_ms=1, action="client.create", result=Result.ALLOWED))
    book.write("gateway.b")
    book.checkpoint()
    found = verify(book.entries, len(book.entries))

    assert [(p.kind, p.sequence, p.writer) for p in found.problems] == [("inserted", false.sequence, "gateway.x")]


def test_a_signature_by_another_key_is_found():
    """It names a key that counts."""
    public = dict(OTHER_KEY.as_dict(private=True)) | {"kid": KEY.kid}
    pretender = ECKey.import_key(public)
    book = Book()
    book.write("gateway.b")
    book.checkpoint(pretender)
    (problem, *_) = verify(book.entries).problems

    assert (problem.kind, problem.writer) == ("altered", CHECKPOINTS)
    assert "signature" in problem.text


def test_a_signature_has_one_spelling():
    """The last character of 86 carries two bits; the other four mean nothing to a tolerant reader."""
    signed = sign(Statement(n=1, at_ms=1), KEY)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spelled = [signed[:-1] + alphabet[alphabet.index(signed[-1]) & 0b110000 | rest] for rest in range(16)]

    assert signed in spelled
    assert [text for text in spelled if open_statement(text, KEYS).checked] == [signed]


def test_too_many_heads_for_one_statement_go_into_the_next(monkeypatch):
    monkeypatch.setattr("libs.common.audit.heads.MAX_HEADS", 3)
    book = Book()
    for n in range(8):
        book.write(f"gateway.w{n}")
    book.write("gateway.w0")
    for _ in range(3):
        book.checkpoint()
    found = verify(book.entries)

    assert found.problems == []
    assert (found.checkpoints, found.checkpoint_upto) == (3, 11)  # the records, and two checkpoints
