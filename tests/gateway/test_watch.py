"""One reader of one job, against a real nats-server: what it shows is the log, whatever gets lost on the way (DESIGN §4)."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from libs.common import chunk_queue
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.contracts.events import START, Position, parse_frame
from libs.common.contracts.faults import Code
from libs.common.contracts.jobs import Binding, Completion, PastEpoch
from libs.common.contracts.subjects import JobKey
from libs.common.folder import Entry
from libs.common.states import JobState
from services.gateway import patience
from services.gateway import watch as watch_module
from services.gateway.sse import log_frames
from services.gateway.watch import Changed, Log, Reset, Watch
from tests.gateway.scripted import END, Reader, Script, events, reading
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

A, B, C = events("a "), events("b "), events("c ")


@pytest.fixture
async def gateway(nats: NatsServer) -> AsyncIterator[Bus]:  # its connection is all of a gateway that is needed here
    """The watch's own connection; the script speaks on `bus`."""
    async with connected(nats) as connection:
        yield connection


@pytest.fixture
async def script(bus: Bus) -> AsyncIterator[Script]:
    async with Script(bus).answering() as made:
        await made.submit()
        yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of milliseconds, for tests in which it has to end."""
    monkeypatch.setattr(watch_module, "SILENCE_S", 0.3)
    monkeypatch.setattr(patience, "AFTER_FAILURE_S", 0.05)
    monkeypatch.setattr(watch_module, "QUEUED_LOOK_S", (0.2, 0.3))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience that never ends within a test: what is seen was not found by looking again."""
    monkeypatch.setattr(patience, "AFTER_FAILURE_S", 60.0)
    for name, value in {"SILENCE_S": 60.0, "QUEUED_LOOK_S": (60.0, 60.0)}.items():
        monkeypatch.setattr(watch_module, name, value)


def changes(reader: Reader) -> list[str]:
    return [
        "bound" if isinstance(item.facts, Binding) and item.facts.node else "queued"
        for item in reader.items
        if isinstance(item, Changed)
    ]


# -- live ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
async def test_a_reader_that_was_there_from_the_start_sees_every_event_once_and_in_order(
    gateway: Bus, script: Script
) -> None:
    async with reading(Watch(gateway, script.key)) as reader:
        await eventually(lambda: changes(reader) == ["queued"])
        await script.bind()
        await eventually(lambda: changes(reader) == ["queued", "bound"])
        await script.write(A, B[:5], B[5:], C)
        whole = await script.end()
        await eventually(lambda: reader.ended)

    assert reader.text == whole == A + B + C + END
    assert script.reads == [], "nothing was missed, so nothing is asked for"


@pytest.mark.usefixtures("patient")
async def test_the_submitter_needs_no_look_at_the_folder_before_the_first_hint(
    gateway: Bus, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Subscribed before it submits, the reader knows all there is: the way to the first token costs one look, at the bind."""
    script = Script(bus)
    looks = 0

    async with script.answering(), Watch(gateway, script.key) as watch:
        newest = watch._journal.newest

        async def counted(key: JobKey) -> Entry | None:
            nonlocal looks
            looks += 1
            return await newest(key)

        monkeypatch.setattr(watch._journal, "newest", counted)
        watch.submitted(await script.submit())
        reader = Reader(watch)
        await script.bind()
        await script.write(A)
        await script.end()
        await eventually(lambda: reader.ended)
        await reader.task

    assert reader.text == A + END
    assert looks == 1


@pytest.mark.usefixtures("patient")
async def test_the_end_event_is_taken_from_the_stream_not_read_again_from_the_folder(
    gateway: Bus, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunk and hint of the ending come together; reading `done` with its whole log for each answer would be waste."""
    await script.bind()
    async with reading(Watch(gateway, script.key)) as reader:
        await eventually(lambda: changes(reader) == ["bound"])
        await script.write(A)
        await eventually(lambda: reader.text == A)

        def must_not(*_: object) -> None:
            raise AssertionError("the folder was read")

        monkeypatch.setattr(reader.watch, "_read_folder", must_not)
        await script.end()
        await eventually(lambda: reader.ended)

    assert reader.text == A + END


@pytest.mark.usefixtures("patient")
async def test_it_subscribes_before_it_reads_so_nothing_falls_in_between(
    gateway: Bus, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that is said while the folder is being read is neither lost nor asked for."""
    async with Watch(gateway, script.key) as watch:
        newest = watch._journal.newest
        at_the_folder, read_on = asyncio.Event(), asyncio.Event()

        async def slow(key: JobKey) -> Entry | None:
            found = await newest(key)
            at_the_folder.set()
            await read_on.wait()
            return found

        await script.bind(hint=False)
        monkeypatch.setattr(watch._journal, "newest", slow)
        reader = Reader(watch)
        await at_the_folder.wait()
        script.silent = True
        await script.write(A, B)
        await eventually(lambda: len(watch._chunks) == 2)
        read_on.set()
        await eventually(lambda: reader.text == A + B)
        reader.task.cancel()
        await asyncio.gather(reader.task, return_exceptions=True)


# -- what was missed -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
async def test_a_reader_that_joins_late_catches_up_from_the_worker_and_then_follows(
    gateway: Bus, script: Script
) -> None:
    await script.bind()
    await script.write(A, B)
    await script.journal.newest(script.key)  # asked behind the chunks, so they are through before anybody listens
    async with reading(Watch(gateway, script.key)) as reader:
        await eventually(lambda: script.reads == [0, len(A + B)])
        assert reader.text == A + B
        await script.write(C)
        whole = await script.end()
        await eventually(lambda: reader.ended)

    assert reader.text == whole
    assert script.reads == [0, len(A + B)], "asked until there is no more, and then no more"


@pytest.mark.usefixtures("patient")
async def test_a_dropped_chunk_is_repaired_by_offset_as_soon_as_the_next_one_comes(
    gateway: Bus, script: Script
) -> None:
    async with reading(Watch(gateway, script.key)) as reader:
        await script.bind()
        await script.write(A)
        await eventually(lambda: reader.text == A)
        script.reads.clear()
        await script.write(B, live=False)
        await script.write(C)
        await eventually(lambda: reader.text == A + B + C)

    assert script.reads[0] == len(A), "asked from the gap on"


@pytest.mark.usefixtures("patient")
async def test_a_dropped_last_chunk_is_noticed_through_the_empty_chunk(gateway: Bus, script: Script) -> None:
    """While an attempt lives the worker says an empty chunk every second, at the offset where its log ends."""
    async with reading(Watch(gateway, script.key)) as reader:
        await script.bind()
        await script.write(A)
        await eventually(lambda: reader.text == A)
        await script.write(B, live=False)
        await script.say(len(script.log), b"")
        await eventually(lambda: reader.text == A + B)


@pytest.mark.usefixtures("quick")
async def test_a_dropped_end_is_noticed_through_silence(gateway: Bus, script: Script) -> None:
    """Neither the end event nor the hint arrives: after the silence the worker is asked, then the leader."""
    await script.bind()
    async with reading(Watch(gateway, script.key)) as reader:
        await script.write(A)
        await eventually(lambda: reader.text == A)
        script.silent = True
        whole = await script.finish(hint=False)
        await eventually(lambda: reader.ended)

    assert reader.text == whole


@pytest.mark.usefixtures("quick")
async def test_a_job_that_waits_long_is_looked_at_again_although_every_hint_was_lost(
    gateway: Bus, script: Script
) -> None:
    async with reading(Watch(gateway, script.key)) as reader:
        await eventually(lambda: changes(reader) == ["queued"])
        await script.bind(hint=False)
        await eventually(lambda: changes(reader) == ["queued", "bound"])
        await script.write(A)
        await eventually(lambda: reader.text == A)


@pytest.mark.usefixtures("patient")
async def test_a_chunk_of_an_epoch_that_is_not_known_yet_waits_for_the_folder(gateway: Bus, script: Script) -> None:
    """The hint of the bind is lost; the chunk itself makes the reader look, and is shown after it, without asking anybody."""
    async with reading(Watch(gateway, script.key)) as reader:
        await eventually(lambda: changes(reader) == ["queued"])
        script.silent = True
        await script.bind(hint=False)
        await script.write(A)
        await eventually(lambda: reader.text == A)

    assert changes(reader) == ["queued", "bound"], "the news comes before the text"
    assert script.reads == []


@pytest.mark.usefixtures("quick")
async def test_a_look_that_fails_is_repeated_although_chunks_keep_coming(
    gateway: Bus, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bind's hint is lost and the look fails: the stream of chunks must not put off the next look for ever."""
    monkeypatch.setattr(watch_module, "QUEUED_LOOK_S", (60.0, 60.0))
    async with reading(Watch(gateway, script.key)) as reader:
        await eventually(lambda: changes(reader) == ["queued"])
        newest, failing = reader.watch._journal.newest, True

        async def fails(key: JobKey) -> Entry | None:
            if failing:
                raise BusError("away")
            return await newest(key)

        monkeypatch.setattr(reader.watch._journal, "newest", fails)
        await script.bind(hint=False)
        await script.write(A, B)
        await eventually(lambda: reader.watch._missed)
        failing = False

        async def chattering() -> bool:
            await script.say(len(script.log), b"")
            return reader.text == A + B

        await eventually(chattering)


@pytest.mark.usefixtures("patient")
async def test_an_answer_of_a_leader_just_deposed_does_not_throw_the_reader_back(
    gateway: Bus, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was shown belongs to the newer epoch; an older record read late is no news."""
    first = await script.bind()
    stale = await script.journal.newest(script.key)
    await script.bind(past=(PastEpoch(epoch=first, base=0),))
    async with reading(Watch(gateway, script.key)) as reader:
        await script.write(A)
        await eventually(lambda: reader.text == A)

        looked = asyncio.Event()

        async def deposed(key: JobKey) -> Entry | None:
            looked.set()
            return stale

        monkeypatch.setattr(reader.watch._journal, "newest", deposed)
        script.newest += 1
        await script.hint(JobState.BOUND)  # of something newer, so that it looks
        await looked.wait()
        await script.write(B)
        await eventually(lambda: reader.text == A + B)
        assert reader.failure is None
        assert len(changes(reader)) == 1


@pytest.mark.usefixtures("quick")
async def test_a_restart_of_nats_in_mid_stream_heals(
    nats: NatsServer, gateway: Bus, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    await script.bind()
    async with reading(Watch(gateway, script.key)) as reader:
        await script.write(A)
        await eventually(lambda: reader.text == A)
        await nats.kill()
        script.log += B  # generated while nobody could hear it
        await eventually(lambda: not gateway.connected)
        await nats.start()
        await eventually(lambda: gateway.connected and script.bus.connected)
        await script.write(C)
        whole = await script.end()
        await eventually(lambda: reader.ended)

    assert reader.text == whole == A + B + C + END


# -- epochs --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
async def test_a_new_epoch_after_nothing_was_shown_goes_on_silently(gateway: Bus, script: Script) -> None:
    async with reading(Watch(gateway, script.key)) as reader:
        first = await script.bind()
        await eventually(lambda: changes(reader)[-1:] == ["bound"])
        await script.requeue(past=(PastEpoch(epoch=first),))
        await script.bind(past=(PastEpoch(epoch=first, base=0),))
        await script.write(A)
        await script.end()
        await eventually(lambda: reader.ended)

    assert reader.text == A + END
    assert not any(isinstance(item, Reset) for item in reader.items)


@pytest.mark.usefixtures("patient")
async def test_after_something_was_shown_a_base_that_covers_it_continues_without_a_gap_or_a_repeat(
    gateway: Bus, script: Script
) -> None:
    """The new epoch's log begins with the carried text; the reader stands inside it and goes on behind it."""
    async with reading(Watch(gateway, script.key)) as reader:
        first = await script.bind()
        await script.write(A)
        await eventually(lambda: reader.text == A)
        await script.bind(carried=A + B, past=(PastEpoch(epoch=first, base=len(A + B)),))
        await script.write(C)
        whole = await script.end()
        await eventually(lambda: reader.ended)

    assert reader.text == whole == A + B + C + END


async def _shown_then_lost(gateway: Bus, script: Script, *, takes_reset: bool) -> Reader:
    async with reading(Watch(gateway, script.key, takes_reset=takes_reset)) as reader:
        first = await script.bind()
        await script.write(A, B)
        await eventually(lambda: reader.text == A + B)
        await script.bind(carried=A, past=(PastEpoch(epoch=first, base=len(A)),))
        await script.write(C)
        await script.end()
        await eventually(lambda: reader.ended or reader.failure)
    return reader


@pytest.mark.usefixtures("patient")
async def test_more_shown_than_the_base_holds_is_a_lost_position(gateway: Bus, script: Script) -> None:
    """The gateway that showed it died as well: the rest would not fit to it."""
    reader = await _shown_then_lost(gateway, script, takes_reset=False)

    assert reader.failure is not None
    assert reader.failure.fault.code is Code.POSITION_LOST
    assert reader.text == A + B, "nothing of the new epoch"


@pytest.mark.usefixtures("patient")
async def test_more_shown_than_the_base_holds_is_a_reset_for_who_asked_for_that(gateway: Bus, script: Script) -> None:
    reader = await _shown_then_lost(gateway, script, takes_reset=True)

    at = next(n for n, item in enumerate(reader.items) if isinstance(item, Reset))
    again = b"".join(item.events for item in reader.items[at:] if isinstance(item, Log))
    assert again == A + C + END, "after the reset the whole log, from its beginning"


@pytest.mark.usefixtures("patient")
async def test_after_the_router_asked_what_was_shown_nothing_more_of_that_epoch_is_shown(
    gateway: Bus, script: Script
) -> None:
    """The answer fixes the base, so later chunks of the fenced worker, however late they come, are dropped."""
    async with reading(Watch(gateway, script.key)) as reader:
        first = await script.bind()
        await script.write(A, B[:4])
        await eventually(lambda: reader.watch._assembler and reader.watch._assembler.received == len(A) + 4)

        assert parse_frame(await script.freeze(first)) == (0, A + B[:4]), "what was received, whole or not"

        await script.write(B[4:], C)
        await script.requeue(past=(PastEpoch(epoch=first),))
        await eventually(lambda: changes(reader)[-1] == "queued")
        await script.say(len(A), B + C, epoch=first)
        await script.bind(carried=A, past=(PastEpoch(epoch=first, base=len(A)),))
        await script.write(C)
        await script.say(len(A), B, epoch=first)
        whole = await script.end()
        await eventually(lambda: reader.ended)

    assert reader.text == whole == A + C + END


@pytest.mark.usefixtures("quick")
async def test_a_worker_that_lives_on_after_the_fence_is_not_asked_in_a_circle(gateway: Bus, script: Script) -> None:
    """It has more text of the frozen epoch than may be shown: asking again and again would never end."""
    async with reading(Watch(gateway, script.key)) as reader:
        first = await script.bind()
        await script.write(A)
        await eventually(lambda: reader.text == A)
        await script.freeze(first)
        script.reads.clear()
        script.log += B
        await script.requeue(past=(PastEpoch(epoch=first, base=len(A)),), hint=False)
        await eventually(lambda: changes(reader)[-1] == "queued")

    assert len(script.reads) < 3
    assert reader.text == A


@pytest.mark.usefixtures("patient")
async def test_a_base_that_stands_in_the_folder_freezes_its_epoch_as_the_question_does(
    gateway: Bus, script: Script
) -> None:
    """A reader that missed the question must not show more than the base that others agreed on."""
    async with reading(Watch(gateway, script.key)) as reader:
        first = await script.bind()
        await script.write(A)
        await eventually(lambda: reader.text == A)
        await script.requeue(past=(PastEpoch(epoch=first, base=len(A)),))
        await eventually(lambda: changes(reader)[-1] == "queued")
        await script.say(len(A), B, epoch=first)
        await script.bind(carried=A, past=(PastEpoch(epoch=first, base=len(A)),))
        await script.end()
        await eventually(lambda: reader.ended)

    assert reader.text == A + END


async def test_who_only_asks_whether_somebody_watches_freezes_nothing(gateway: Bus, script: Script) -> None:
    async with reading(Watch(gateway, script.key)) as reader:
        await script.bind()
        await script.write(A)
        await eventually(lambda: reader.text == A)
        assert parse_frame(await script.freeze(0)) == (0, b"")
        await script.write(B)
        await eventually(lambda: reader.text == A + B)


async def test_nobody_answers_for_a_job_that_nobody_watches_any_more(gateway: Bus, script: Script) -> None:
    """The router takes "no responders" as: nobody reads this. A watch that was closed must not answer."""

    async def answered() -> bool:
        try:
            return bool(await script.freeze(0))
        except BusError:  # no responders; or nobody answers any more while the server does not know it yet
            return False

    async with Watch(gateway, script.key):
        await eventually(answered)
    assert not await answered()


# -- positions -------------------------------------------------------------------------------------------------------------

LONG = [events(f"word{n} ") for n in range(20)]
WHOLE = b"".join(LONG) + END


async def _whole(gateway: Bus, key: JobKey, position: Position = START) -> Reader:
    async with reading(Watch(gateway, key, position)) as reader:
        await eventually(lambda: reader.task.done())
    return reader


def _places() -> list[int]:
    return [n + 1 for n, byte in enumerate(WHOLE) if byte == ord("\n")]


async def test_after_the_end_every_position_gives_the_rest_of_the_same_bytes(gateway: Bus, script: Script) -> None:
    epoch = await script.bind()
    await script.finish(WHOLE)
    uncut = (await _whole(gateway, script.key)).frames

    assert uncut == log_frames(Position(epoch, 0), WHOLE)
    for offset in _places():
        rest = (await _whole(gateway, script.key, Position(epoch, offset))).frames
        assert uncut.endswith(rest)
        assert rest == log_frames(Position(epoch, offset), WHOLE[offset:])


@pytest.mark.usefixtures("patient")
async def test_live_every_position_gives_the_rest_of_the_same_bytes(gateway: Bus, script: Script) -> None:
    """Caught up from the worker and live, as after the end: one log event is one frame, whoever brings it."""
    epoch = await script.bind()
    await script.write(*LONG[:10])
    offsets = [0, *(offset for offset in _places() if offset <= len(script.log))]
    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(_whole(gateway, script.key, Position(epoch, offset))) for offset in offsets]
        await eventually(lambda: len(script.reads) >= len(offsets))
        await script.write(*LONG[10:])
        await script.end()

    for offset, reader in zip(offsets, readers, strict=True):
        assert reader.result().frames == log_frames(Position(epoch, offset), WHOLE[offset:])


BOGUS = [len(LONG[0]) + 3, len(WHOLE) + 1, 10**9]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("offset", BOGUS)
async def test_a_position_that_no_stream_gave_is_lost_also_while_the_job_runs(
    gateway: Bus, script: Script, offset: int
) -> None:
    """Inside an event, or beyond the log. Nothing may be shown from there, not even what comes live at that moment."""
    epoch = await script.bind()
    await script.write(LONG[0])
    async with reading(Watch(gateway, script.key, Position(epoch, offset))) as reader:
        await script.write(LONG[1])
        await eventually(lambda: reader.failure)

    assert reader.failure is not None
    assert reader.failure.fault.code is Code.POSITION_LOST
    assert reader.items == [], "an answer of its own, before anything has begun"


@pytest.mark.usefixtures("patient")
async def test_a_position_that_no_stream_gave_is_a_reset_for_who_takes_one(gateway: Bus, script: Script) -> None:
    epoch = await script.bind()
    await script.write(LONG[0])
    async with reading(Watch(gateway, script.key, Position(epoch, 3), takes_reset=True)) as reader:
        await eventually(lambda: reader.text == LONG[0])
    assert [type(item) for item in reader.items] == [Changed, Reset, Log]


@pytest.mark.usefixtures("patient")
async def test_a_place_that_the_next_epoch_does_not_hold_is_a_reset_before_its_first_token(
    gateway: Bus, script: Script
) -> None:
    """Nobody watched when the worker died, so nothing was carried over; the reader comes back while the next one runs."""
    first = await script.bind()
    await script.bind(past=(PastEpoch(epoch=first, base=0),))
    await script.write(LONG[0])
    async with reading(Watch(gateway, script.key, Position(first, len(A)), takes_reset=True)) as reader:
        await eventually(lambda: reader.text == LONG[0])
    assert [type(item) for item in reader.items] == [Changed, Reset, Log]


@pytest.mark.usefixtures("quick")
async def test_a_place_inside_an_event_shows_nothing_while_the_worker_cannot_say(gateway: Bus, script: Script) -> None:
    """Chunks that come live are held until somebody has confirmed the place; then they are all there."""
    epoch = await script.bind()
    await script.write(LONG[0])
    script.silent = True
    async with reading(Watch(gateway, script.key, Position(epoch, len(LONG[0])))) as reader:
        await eventually(lambda: changes(reader) == ["bound"])
        await script.write(LONG[1])
        await eventually(lambda: reader.watch._chunks)
        assert reader.text == b""
        script.silent = False
        await eventually(lambda: reader.text == LONG[1])


@pytest.mark.parametrize("offset", BOGUS)
async def test_a_position_that_no_stream_gave_is_lost_after_the_end_too(
    gateway: Bus, script: Script, offset: int
) -> None:
    epoch = await script.bind()
    await script.finish(WHOLE)
    reader = await _whole(gateway, script.key, Position(epoch, offset))

    assert reader.failure is not None
    assert reader.failure.fault.code is Code.POSITION_LOST
    assert reader.items == []


async def test_an_epoch_that_the_job_never_had_is_a_lost_position(gateway: Bus, script: Script) -> None:
    await script.bind()
    await script.write(A)
    reader = await _whole(gateway, script.key, Position(999_999, len(A)))
    assert reader.failure is not None
    assert reader.failure.fault.code is Code.POSITION_LOST


async def test_a_long_log_is_replayed_in_pieces_of_whole_events(gateway: Bus, script: Script) -> None:
    """A finished job of megabytes is not one write: a slow client would hold all of it in buffers."""
    epoch = await script.bind()
    whole = b"".join(events("x" * size) for size in (10, 300_000, 20, 200_000, 100_000, 5)) + END
    await script.finish(whole)
    reader = await _whole(gateway, script.key)

    logs = [item for item in reader.items if isinstance(item, Log)]
    assert len(logs) > 2
    assert [item.ended for item in logs] == [False] * (len(logs) - 1) + [True]
    assert reader.frames == log_frames(Position(epoch, 0), whole)


# -- gone ------------------------------------------------------------------------------------------------------------------


async def test_a_job_that_does_not_exist_is_not_found(gateway: Bus) -> None:
    reader = await _whole(gateway, JobKey("alice", "job_nothere"))
    assert reader.failure is not None
    assert reader.failure.fault.code is Code.JOB_NOT_FOUND


async def test_an_erased_job_is_not_found(gateway: Bus, script: Script) -> None:
    await script.bind()
    await script.finish(WHOLE, hint=False)
    done = await script.journal.newest(script.key)
    assert done is not None
    assert isinstance(done.facts, Completion)
    erased = msgspec.structs.replace(done.facts, erased=True, op_id="erased")
    await script.journal.write(script.key, "done", erased, b"", expected=done.sequence, ttl=60)

    reader = await _whole(gateway, script.key)
    assert reader.failure is not None
    assert reader.failure.fault.code is Code.JOB_NOT_FOUND


# -- pressure --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
async def test_a_slow_reader_leaves_a_bounded_queue_and_still_gets_every_byte(gateway: Bus, script: Script) -> None:
    """50 MB while the reader sleeps: the queue is dropped when it is full, and read again by offset."""
    await script.bind()
    piece = events("y" * 60_000)
    async with reading(Watch(gateway, script.key)) as reader:
        await script.write(A)
        await eventually(lambda: reader.text == A)
        reader.go.clear()
        await script.write(B)
        most, begin = 0, len(script.log)
        script.log += piece * (50_000_000 // len(piece))
        for offset in range(begin, len(script.log), len(piece)):
            await script.say(offset, piece)
            await asyncio.sleep(0)  # what was sent has to be received, too, in this one process
            most = max(most, reader.watch._chunks.size)
        await script.say(len(script.log), b"")

        def all_came() -> bool:
            newest = reader.watch._chunks.newest
            return newest is not None and newest.offset == len(script.log)

        await eventually(all_came)
        assert most <= chunk_queue.MAX_WAITING
        reader.go.set()
        whole = await script.end()
        await eventually(lambda: reader.ended, within=20)

    assert reader.text == whole


async def test_many_small_chunks_fill_the_queue_too(gateway: Bus, script: Script) -> None:
    """A token is smaller than what Python keeps around it, so the bytes alone would not bound the memory."""
    await script.bind()
    async with Watch(gateway, script.key) as watch:
        message = watch_module.Message(f"out.n.{script.key.client}.{script.key.job}.{script.newest}.c", b"0|", {}, "")
        for _ in range(50_000):
            watch._on_chunk(message)
        assert len(watch._chunks) <= chunk_queue.MAX_WAITING / chunk_queue.ENTRY_COST


async def test_a_closed_watch_leaves_no_subscription_and_no_timer(gateway: Bus, script: Script) -> None:
    before = len(gateway._client._subs)
    async with reading(Watch(gateway, script.key)) as reader:
        await eventually(lambda: changes(reader) == ["queued"])
        assert len(gateway._client._subs) == before + 3
    assert len(gateway._client._subs) == before
    timer = reader.watch._patience.timer
    assert timer is not None
    assert timer.cancelled()
