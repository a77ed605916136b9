from services.gateway.limits import reader_slots
from services.gateway.limits.reader_slots import HOLDS_MS, MAX, WORTH_MS, Place, Readers
from services.gateway.limits.rolling import Instant

BEGUN = (Place.TAKEN, True)


def at(ms: int) -> Instant:
    return Instant(ms, ms + 5)


def test_a_stream_counts_until_a_while_after_its_last_read() -> None:
    readers: Readers = {}
    assert reader_slots.take(readers, "job_a.x", 10_000, 2, at(1)) == BEGUN
    assert readers == {"job_a.x": 10_006 + HOLDS_MS}
    reader_slots.forget(readers, Instant(10_005 + HOLDS_MS, 99_999))
    assert readers
    reader_slots.forget(readers, Instant(10_006 + HOLDS_MS, 99_999))
    assert not readers


def test_each_reader_of_each_job_is_a_stream_and_there_is_never_one_too_many() -> None:
    readers: Readers = {}
    names = [reader_slots.name("job_a", ""), reader_slots.name("job_a", "x"), reader_slots.name("job_b", "x")]
    assert [reader_slots.take(readers, name, 0, 2, at(1)) for name in names] == [BEGUN] * 2 + [(Place.FULL, False)]
    assert reader_slots.leave(readers, names[0])
    assert not reader_slots.leave(readers, names[0])
    assert reader_slots.take(readers, names[2], 0, 2, at(1)) == BEGUN


def test_who_is_in_goes_on_also_when_there_is_less_room_and_is_written_only_when_it_is_worth_it() -> None:
    readers: Readers = {}
    reader_slots.take(readers, "a", 0, 1, at(0))
    before = dict(readers)
    assert reader_slots.take(readers, "a", 0, 0, at(WORTH_MS - 1)) == (Place.KEPT, False)
    assert readers == before
    assert reader_slots.take(readers, "a", 0, 0, at(WORTH_MS)) == (Place.KEPT, True)
    assert readers == {"a": WORTH_MS + 5 + HOLDS_MS}


def test_a_short_wait_after_a_long_one_takes_nothing_away() -> None:
    readers: Readers = {}
    reader_slots.take(readers, "a", 300_000, 1, at(0))
    assert reader_slots.take(readers, "a", 0, 1, at(1)) == (Place.KEPT, False)
    assert readers == {"a": 300_005 + HOLDS_MS}


def test_there_are_never_more_than_a_ledger_bears() -> None:
    readers = {str(n): 10**9 for n in range(MAX)}
    assert reader_slots.take(readers, "one more", 0, 10**9, at(0)) == (Place.FULL, False)
