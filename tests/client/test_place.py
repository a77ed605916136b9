"""A reader's place, against a world that loses, doubles, delays and shuffles whatever it says, and kills workers."""

import itertools
import random
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from libs.client.place import Ask, Place
from libs.common.contracts.api import Piece
from libs.common.contracts.events import Position, whole_events
from libs.common.contracts.jobs import PastEpoch
from libs.common.positions import carry
from libs.common.states import JobState

END = b'{"end":1}\n'


class Snapshot(NamedTuple):
    """What a gateway would find in the folder, and at the worker, at one moment."""

    state: JobState
    epoch: int
    past: tuple[PastEpoch, ...]
    log: bytes

    def piece(self, asked: Position, limit: int) -> Piece:
        place = None if self.state is JobState.QUEUED else carry(asked, self.epoch, self.past)
        log = b"" if place is None else self.log[place.offset : place.offset + limit]
        offset = None if place is None else place.offset
        return Piece(state=self.state, epoch=self.epoch, lineage=self.past, offset=offset, log=log)


class World(RuleBasedStateMachine):
    """`kind`: hints come, and the router gathers all that was shown: then no reader is ever lost."""

    @initialize(kind=st.booleans())
    def begin(self, kind: bool) -> None:
        self.kind = kind
        self.place = Place()
        self.shown = b""
        self.logs: dict[int, bytes] = {}  # all that was ever in the log of an epoch
        self.sequence = 10
        self.written = 0
        self.now = Snapshot(JobState.QUEUED, 0, (), b"")
        self.before = [self.now]
        self.flying: list[tuple[int, int, bytes]] = []

    def become(self, now: Snapshot) -> None:
        self.now = now
        self.before.append(now)

    def show(self, events: bytes) -> None:
        self.shown += events

    @property
    def bound(self) -> bool:
        return self.now.state is JobState.BOUND

    # -- what the others do --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.now.state is JobState.QUEUED and all(p.base is not None for p in self.now.past))
    @rule()
    def bind(self) -> None:
        self.sequence += 3
        self.become(Snapshot(JobState.BOUND, self.sequence, self.now.past, self.now.log))
        self.logs[self.sequence] = self.now.log
        if self.kind:
            self.place.named(self.sequence)

    @precondition(lambda self: self.bound)
    @rule(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), cuts=st.lists(st.integers(0, 60), max_size=4))
    def write(self, sizes: list[int], cuts: list[int]) -> None:
        """Events of a worker, as chunks cut anywhere."""
        new = b""
        for size in sizes:
            self.written += 1
            new += b'"%d%b"\n' % (self.written, b"x" * size)
        start = len(self.now.log)
        self.become(self.now._replace(log=self.now.log + new))
        self.logs[self.now.epoch] = self.now.log
        edges = sorted({0, len(new), *(cut for cut in cuts if cut < len(new))})
        for low, high in itertools.pairwise(edges):
            self.flying.append((self.now.epoch, start + low, new[low:high]))
        self.flying.append((self.now.epoch, len(self.now.log), b""))

    @precondition(lambda self: self.bound)
    @rule(late=st.integers(1, 10))
    def fenced_worker_goes_on(self, late: int) -> None:
        """What it says after the fence is in no log that counts."""
        past = (*self.now.past, PastEpoch(epoch=self.now.epoch))
        log = self.now.log
        extra = b'"void%b"\n' % (b"v" * late)
        self.flying.append((self.now.epoch, len(log), extra))
        self.logs[self.now.epoch] = log + extra
        self.requeued(past)

    @precondition(lambda self: self.bound)
    @rule()
    def worker_dies(self) -> None:
        self.requeued((*self.now.past, PastEpoch(epoch=self.now.epoch)))

    def requeued(self, past: tuple[PastEpoch, ...]) -> None:
        self.sequence += 3
        carried = self.now.log[: next((p.base for p in reversed(self.now.past) if p.base is not None), 0)]
        self.become(Snapshot(JobState.QUEUED, self.sequence, past, carried))
        if self.kind:
            self.place.named(self.sequence)

    @precondition(lambda self: self.now.past and self.now.past[-1].base is None)
    @rule(share=st.floats(0, 1))
    def gather(self, share: float) -> None:
        """A second requeue fixes the base: never less than was carried before."""
        epoch = self.now.past[-1].epoch
        log = self.logs[epoch]
        smallest = len(self.now.log)
        if self.kind and self.place.position.epoch == epoch:
            smallest = max(smallest, self.place.position.offset)
        base = max(smallest, whole_events(log[: smallest + int(share * (len(log) - smallest))]))
        self.sequence += 3
        past = tuple(PastEpoch(epoch=p.epoch, base=base if p.base is None else p.base) for p in self.now.past)
        self.become(Snapshot(JobState.QUEUED, self.sequence, past, log[:base]))

    @precondition(lambda self: self.bound)
    @rule()
    def finish(self) -> None:
        start = len(self.now.log)
        self.become(self.now._replace(state=JobState.SUCCEEDED, log=self.now.log + END))
        self.logs[self.now.epoch] = self.now.log
        self.flying.append((self.now.epoch, start, END))

    # -- what reaches the reader ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 50), again=st.booleans())
    def deliver(self, which: int, again: bool) -> None:
        chunk = self.flying[which % len(self.flying)]
        if not again:
            self.flying.remove(chunk)
        self.show(self.place.chunk(*chunk))

    @precondition(lambda self: self.flying)
    @rule()
    def deliver_in_order(self) -> None:
        while self.flying:
            self.show(self.place.chunk(*self.flying.pop(0)))

    @precondition(lambda self: self.flying)
    @rule(order=st.randoms(use_true_random=False))
    def deliver_shuffled_and_doubled(self, order: random.Random) -> None:
        chunks = self.flying * 2
        self.flying.clear()
        order.shuffle(chunks)
        for chunk in chunks:
            self.show(self.place.chunk(*chunk))
            self.what_was_shown_is_the_beginning_of_one_log_in_whole_events()

    @precondition(lambda self: self.flying)
    @rule()
    def lose_all(self) -> None:
        self.flying.clear()

    @rule()
    def hint(self) -> None:
        self.place.named(self.now.epoch)

    @rule()
    def silence(self) -> None:
        self.place.doubt()

    @precondition(lambda self: self.place.ask is not Ask.NOT)
    @rule(limit=st.integers(1, 200), late=st.integers(0, 3))
    def look(self, limit: int, late: int) -> None:
        """A leader just deposed may speak of what was."""
        snapshot = self.before[max(0, len(self.before) - 1 - late)]
        self.show(self.place.piece(snapshot.piece(self.place.asks, limit)))

    @precondition(lambda self: self.place.lost)
    @rule()
    def reset(self) -> None:
        self.place.reset()
        self.shown = b""

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def what_was_shown_is_the_beginning_of_one_log_in_whole_events(self) -> None:
        if not hasattr(self, "place"):
            return
        position = self.place.position
        assert len(self.shown) == position.offset
        assert whole_events(self.shown) == len(self.shown)
        if self.shown:
            assert self.logs[position.epoch].startswith(self.shown)

    @invariant()
    def nobody_is_lost_without_need(self) -> None:
        if not hasattr(self, "place") or not self.place.lost:
            return
        assert not self.kind
        assert any(
            now.state is not JobState.QUEUED and carry(self.place.position, now.epoch, now.past) is None
            for now in self.before
        )

    def teardown(self) -> None:
        """When all is quiet the reader has everything, or was told."""
        if not hasattr(self, "place") or self.place.lost:
            return
        if self.now.past and self.now.past[-1].base is None:
            self.gather(0.5)
        self.place.doubt()
        for _ in range(2000):
            if self.place.ask is Ask.NOT or self.place.lost:
                break
            self.show(self.place.piece(self.now.piece(self.place.asks, 37)))
        assert self.place.ask is Ask.NOT or self.place.lost
        if self.place.lost:
            self.nobody_is_lost_without_need()
        else:
            if self.now.state is not JobState.QUEUED:
                assert self.shown == self.now.log
            assert (self.place.ended is not None) == self.now.state.final
        self.what_was_shown_is_the_beginning_of_one_log_in_whole_events()


World.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
TestWorld = World.TestCase


# -- what the world seldom comes to ----------------------------------------------------------------------------------------


def test_an_older_epochs_chunk_after_a_newer_ones_is_void_though_nothing_was_shown() -> None:
    place = Place()
    assert place.chunk(9, 0, b'{"a"') == b""
    assert place.chunk(5, 4, b":1}\n") == b""
    assert place.chunk(9, 4, b":2}\n") == b'{"a":2}\n'


def test_an_answer_older_than_what_is_known_is_asked_for_again_in_a_moment() -> None:
    place = Place()
    assert place.chunk(9, 0, b"1\n") == b"1\n"
    for state, offset in ((JobState.QUEUED, None), (JobState.RUNNING, 2), (JobState.SUCCEEDED, None)):
        assert place.piece(Piece(state=state, epoch=5, offset=offset, log=b"2\n" if offset else b"")) == b""
        assert place.outdated
        assert place.ask is Ask.SOON
        assert not place.lost
        assert place.ended is None
    assert place.piece(Piece(state=JobState.RUNNING, epoch=9, offset=2)) == b""
    assert not place.outdated
    assert place.ask is Ask.NOT


def test_a_gap_that_the_worker_cannot_fill_yet_is_asked_for_again_in_a_moment() -> None:
    place = Place()
    place.chunk(9, 2, b"2\n")
    assert place.ask is Ask.NOW
    assert place.piece(Piece(state=JobState.RUNNING, epoch=9, offset=0)) == b""
    assert place.ask is Ask.SOON


def test_what_is_beyond_a_gap_is_not_kept_for_ever() -> None:
    """Whoever reads what is missing reads it, too; and a position that holds nothing costs nothing."""
    place = Place()
    place.chunk(9, 2, b"2\n")
    place.piece(Piece(state=JobState.RUNNING, epoch=9, offset=0))
    assert place._assembler is not None
    assert not place._assembler.gap
