"""Positions across epochs, and chunks put in order by offset: pure, so tried with whatever hypothesis thinks of."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.contracts.events import START, Position, whole_events
from libs.common.contracts.jobs import PastEpoch
from libs.common.positions import MAX_PARKED, PREFIX_KEPT, Assembler, carry

EVENTS = st.lists(st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"\n", b"_") + b"\n"), max_size=12)


# -- carry ---------------------------------------------------------------------------------------------------------------


@st.composite
def lineages(draw: st.DrawFn) -> tuple[tuple[PastEpoch, ...], list[bytes]]:
    """Epochs with the log each had, the next beginning with a prefix of it: (past, logs); the last log is the present one."""
    logs, past, log = [], [], b""
    for epoch in range(1, draw(st.integers(1, 4)) + 1):
        log += b"".join(bytes([65 + epoch]) + event for event in draw(EVENTS))
        logs.append(log)
        base = draw(st.sampled_from([n for n in range(len(log) + 1) if n == 0 or log[n - 1 : n] == b"\n"]))
        past.append(PastEpoch(epoch=epoch, base=base))
        log = log[:base]
    return tuple(past[:-1]), logs


@given(lineage=lineages(), data=st.data())
def test_a_position_is_carried_exactly_when_the_bytes_before_it_are_carried_by_its_own_base(
    lineage: tuple[tuple[PastEpoch, ...], list[bytes]], data: st.DataObject
) -> None:
    """Up to the base that followed, a position means the same bytes in every later epoch; beyond, it is lost."""
    past, logs = lineage
    now = len(logs)
    epoch = data.draw(st.integers(1, now))
    offset = data.draw(st.integers(0, len(logs[epoch - 1])))
    bases = [earlier.base or 0 for earlier in past if earlier.epoch == epoch]

    carried = carry(Position(epoch, offset), now, past)

    if epoch == now or offset == 0 or offset <= bases[0]:
        assert carried == Position(now, offset)
    else:
        assert carried is None
    if carried and epoch + 1 >= now:
        assert logs[now - 1][:offset] == logs[epoch - 1][:offset]


def test_a_base_that_was_not_gathered_yet_carries_nothing() -> None:
    assert carry(Position(3, 5), 9, (PastEpoch(epoch=3),)) is None


def test_who_has_seen_nothing_begins_at_the_beginning_of_any_epoch() -> None:
    assert carry(START, 9, ()) == Position(9, 0)
    assert carry(Position(3, 0), 9, (PastEpoch(epoch=3),)) == Position(9, 0)


def test_an_epoch_that_the_job_never_had_is_not_carried() -> None:
    assert carry(Position(4, 5), 9, (PastEpoch(epoch=3, base=100),)) is None


# -- assembler -------------------------------------------------------------------------------------------------------------


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, bytes]]]:
    """A log, and pieces of it in any order, overlapping, repeated, with some missing; and empty ones."""
    log = b"".join(draw(EVENTS))
    piece = st.tuples(st.integers(0, len(log)), st.integers(0, 12)).map(lambda p: (p[0], log[p[0] : p[0] + p[1]]))
    return log, draw(st.lists(piece, max_size=25))


@settings(max_examples=400)
@given(deliveries())
def test_whatever_arrives_the_output_is_a_prefix_of_the_log_in_whole_events_each_once(
    delivered: tuple[bytes, list[tuple[int, bytes]]],
) -> None:
    log, pieces = delivered
    assembler, shown = Assembler(Position(7, 0)), b""
    for offset, piece in pieces:
        shown += assembler.feed(offset, piece)
        assert log.startswith(shown)
        assert whole_events(shown) == len(shown) == assembler.shown
        offset_kept, kept = assembler.kept()
        assert offset_kept + len(kept) == assembler.received
        assert kept == log[offset_kept : assembler.received]


@settings(max_examples=400)
@given(deliveries())
def test_a_gap_is_reported_exactly_when_something_lies_beyond_what_was_received(
    delivered: tuple[bytes, list[tuple[int, bytes]]],
) -> None:
    """An empty chunk counts too: it says that so much was sent."""
    _, pieces = delivered
    assembler = Assembler(Position(7, 0))
    furthest = 0
    for offset, piece in pieces:
        assembler.feed(offset, piece)
        furthest = max(furthest, offset + len(piece))
        assert assembler.gap == (furthest > assembler.received)


@given(deliveries(), st.booleans())
def test_reading_the_log_again_from_where_it_stopped_completes_it(
    delivered: tuple[bytes, list[tuple[int, bytes]]], forgets: bool
) -> None:
    log, pieces = delivered
    assembler = Assembler(Position(7, 0))
    shown = b"".join(assembler.feed(offset, piece) for offset, piece in pieces)
    if forgets:
        assembler.forget_parked()
    shown += assembler.feed(assembler.received, log[assembler.received :])
    assert shown == log
    assert not assembler.gap


@given(deliveries(), st.data())
def test_a_reader_that_resumes_gets_the_rest_of_the_log(
    delivered: tuple[bytes, list[tuple[int, bytes]]], data: st.DataObject
) -> None:
    log, pieces = delivered
    start = data.draw(st.sampled_from([0, *(n + 1 for n, byte in enumerate(log) if byte == 10)]))
    assembler = Assembler(Position(7, start))
    shown = b"".join(assembler.feed(offset, piece) for offset, piece in pieces)
    shown += assembler.feed(0, log)
    assert shown == log[start:]


def test_of_what_was_received_the_last_64_kb_are_kept_for_the_router() -> None:
    assembler, log = Assembler(Position(7, 0)), bytes(range(250)) * 1200
    for offset in range(0, len(log), 1000):
        assembler.feed(offset, log[offset : offset + 1000])
        start, kept = assembler.kept()
        assert kept == log[start : offset + 1000]
        assert len(kept) == min(offset + 1000, PREFIX_KEPT)


def test_a_token_costs_the_same_after_a_long_answer_as_at_its_beginning() -> None:
    """The bytes kept for the router are not copied for each token."""
    assembler = Assembler(Position(7, 0))
    assembler.feed(0, b"x" * PREFIX_KEPT + b"\n")
    before = id(assembler._kept)
    assembler.feed(assembler.received, b"a\n")
    assert id(assembler._kept) == before


@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_what_lies_beyond_a_gap_is_kept_only_up_to_a_limit(size: int) -> None:
    assembler = Assembler(Position(7, 0))
    for n in range(3 * MAX_PARKED // 10_000):
        assembler.feed(10 + n * size, b"x" * size)
    held: Any = assembler._parked
    assert sum(map(len, held.values())) <= MAX_PARKED
    assert len(held) <= 4096
    assert assembler.gap
