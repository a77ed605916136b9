"""A stream is the log, each event once and in order, whatever gets lost on the way. Against a real gateway."""

import asyncio
from typing import Any

import pytest

from libs.client import (
    Arriero,
    ArrieroError,
    Data,
    JobCancelled,
    JobFailed,
    JobNotFound,
    NoGateway,
    NotConnected,
    PositionLost,
    Reset,
    Text,
    Thinking,
    ToolCall,
)
from libs.client import stream as stream_module
from libs.client.place import Ask
from libs.common import chunk_queue
from libs.common.bus.connection import Bus
from libs.common.contracts.events import End, Event, line
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.jobs import PastEpoch
from libs.common.states import JobState
from tests.client.reading import reading
from tests.gateway.running import Gateway, running_gateway
from tests.gateway.scripted import END, Script, events
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

A, B, C = events("a "), events("b "), events("c ")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of milliseconds, for tests in which it has to end."""
    monkeypatch.setattr(stream_module, "SILENCE_S", 0.3)
    monkeypatch.setattr(stream_module, "SOON_S", 0.05)
    monkeypatch.setattr(stream_module, "QUEUED_LOOK_S", (0.2, 0.3))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience that never ends within a test: what is seen was not found by looking again. And nobody watches along."""
    for name, value in {"SILENCE_S": 60.0, "SOON_S": 60.0, "QUEUED_LOOK_S": (60.0, 60.0)}.items():
        monkeypatch.setattr(stream_module, name, value)
    monkeypatch.setattr(stream_module.Stream, "_watch_along", _nobody)


async def _nobody(_: Any) -> None:
    pass


class Looks:
    """Counts what the streams ask the gateways for; `while_asked` runs when an answer is under way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[int, int]] = []
        self.answered = 0
        read = stream_module.Stream._read

        async def counted(stream: Any, position: Any, **more: Any) -> Any:
            if more:
                return await read(stream, position, **more)
            self.asked.append(tuple(position))
            found = await read(stream, position)
            self.answered += 1
            return found

        monkeypatch.setattr(stream_module.Stream, "_read", counted)

    async def first(self) -> None:
        await eventually(lambda: self.answered)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


# -- live ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
async def test_who_is_there_from_the_start_gets_every_event_once_in_order_and_asks_once(
    arriero: Arriero, script: Script, looks: Looks
) -> None:
    async with reading(arriero.job(script.key.job)) as reader:
        await looks.first()
        epoch = await script.bind()
        await script.write(A, B[:5], B[5:], C)
        await script.end()
        await eventually(lambda: reader.ended)
    assert reader.error is None
    assert reader.texts == ["a ", "b ", "c "]
    assert [event.position for event in reader.events] == [f"{epoch}.{len(A) * n}" for n in (1, 2, 3)]
    assert looks.asked == [(0, 0)]


async def test_every_kind_of_event_comes_as_what_it_is(arriero: Arriero, script: Script) -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "La Paz"}}}
    log = line(Event(thinking="hm")) + b'{"tool_call":{"function":{"name":"weather","arguments":{"city":"La Paz"}}}}\n'
    log += b'{"data":[[0.5,1]]}\n{"text":"t","logprobs":[{"token":"t"}]}\n{"of_tomorrow":1}\n'
    await script.bind()
    await script.finish(log + END)
    async with reading(arriero.job(script.key.job)) as reader:
        await eventually(lambda: reader.ended)
    kinds = [
        (type(event), *(getattr(event, name) for name in names))
        for event, names in zip(reader.events, (("text",), ("call",), ("data",), ("text", "logprobs")), strict=True)
    ]
    assert kinds == [(Thinking, "hm"), (ToolCall, call), (Data, [[0.5, 1]]), (Text, "t", [{"token": "t"}])]


@pytest.mark.usefixtures("patient")
async def test_doubled_and_overlapping_chunks_show_nothing_twice(arriero: Arriero, script: Script) -> None:
    async with reading(arriero.job(script.key.job)) as reader:
        await script.bind()
        await script.write(A, B)
        await script.say(0, A)
        await script.say(3, (A + B)[3:])
        await script.say(len(A), B + C)
        script.log += C
        await script.end()
        await eventually(lambda: reader.ended)
    assert reader.texts == ["a ", "b ", "c "]


@pytest.mark.usefixtures("patient")
async def test_a_lost_chunk_is_read_from_a_gateway_as_soon_as_the_next_one_comes(
    arriero: Arriero, script: Script, looks: Looks
) -> None:
    async with reading(arriero.job(script.key.job)) as reader:
        await looks.first()
        epoch = await script.bind()
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])
        await script.write(B, live=False)
        await script.write(C)
        await eventually(lambda: reader.texts == ["a ", "b ", "c "])
    assert looks.asked[:2] == [(0, 0), (epoch, len(A))]


@pytest.mark.usefixtures("patient")
async def test_a_lost_last_chunk_is_noticed_through_the_empty_one(
    arriero: Arriero, script: Script, looks: Looks
) -> None:
    async with reading(arriero.job(script.key.job)) as reader:
        await looks.first()
        await script.bind()
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])
        await script.write(B, live=False)
        await script.say(len(script.log), b"")
        await eventually(lambda: reader.texts == ["a ", "b "])


@pytest.mark.usefixtures("quick")
async def test_a_lost_end_is_noticed_through_silence(arriero: Arriero, script: Script) -> None:
    async with reading(arriero.job(script.key.job)) as reader:
        await script.bind()
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])
        await script.finish(hint=False)
        await eventually(lambda: reader.ended)
    assert reader.error is None


@pytest.mark.usefixtures("quick")
async def test_a_job_that_waits_long_is_looked_at_again_although_every_word_of_it_was_lost(
    arriero: Arriero, script: Script, looks: Looks
) -> None:
    async with reading(arriero.job(script.key.job)) as reader:
        await looks.first()
        await script.bind(hint=False)
        await script.write(A, live=False)
        await script.finish(hint=False)
        await eventually(lambda: reader.ended)
    assert reader.texts == ["a "]


@pytest.mark.usefixtures("patient")
async def test_an_end_that_the_router_wrote_is_learnt_from_its_hint(
    arriero: Arriero, script: Script, looks: Looks
) -> None:
    fault = Fault(code=Code.NODE_FAILED, message="three nodes failed")
    async with reading(arriero.job(script.key.job)) as reader:
        await looks.first()
        log = line(Event(end=End(state=JobState.FAILED, fault=fault)))
        await script.finish(log, state=JobState.FAILED, fault=fault)
        await eventually(lambda: reader.ended)
    assert isinstance(reader.error, JobFailed)
    assert (reader.error.code, reader.error.message, reader.error.retryable) == (
        "node_failed",
        "three nodes failed",
        True,
    )


# -- late, and again -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
async def test_who_comes_late_gets_what_was_said_and_then_follows(arriero: Arriero, script: Script) -> None:
    await script.bind()
    await script.write(A, B, live=False)
    async with reading(arriero.job(script.key.job)) as reader:
        await eventually(lambda: reader.texts == ["a ", "b "])
        await script.write(C)
        await script.end()
        await eventually(lambda: reader.ended)
    assert reader.texts == ["a ", "b ", "c "]


@pytest.mark.usefixtures("patient")
async def test_a_finished_job_is_shown_whole_however_long_it_is(arriero: Arriero, script: Script) -> None:
    texts = [f"{n} " * 40_000 for n in range(12)]
    await script.bind()
    await script.finish(events(*texts) + END)
    async with reading(arriero.job(script.key.job)) as reader:
        await eventually(lambda: reader.ended)
    assert reader.texts == texts


@pytest.mark.usefixtures("patient")
async def test_after_every_position_comes_the_rest_live_and_after_the_end(arriero: Arriero, script: Script) -> None:
    job = arriero.job(script.key.job)
    await script.bind()
    await script.write(A, B, C, live=False)
    async with reading(job) as reader:
        await eventually(lambda: len(reader.events) == 3)
    positions = [event.position for event in reader.events]
    for ended in (False, True):
        if ended:
            await script.end()
        for n, position in enumerate(positions, 1):
            async with reading(job, after=position) as again:
                await eventually(lambda again=again, n=n: again.texts == ["a ", "b ", "c "][n:])
                if ended:
                    await eventually(lambda again=again: again.ended)
                    assert again.error is None


@pytest.mark.parametrize("after", ["x", "7", "", "1.7", "99999.4"])
@pytest.mark.parametrize("is_ended", [False, True])
async def test_a_position_that_no_stream_gave_is_an_error(
    arriero: Arriero, script: Script, after: str, is_ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "SOON_S", 0.02)
    assert await script.bind() == 1
    await script.write(A, B, live=False)
    if is_ended:
        await script.finish()
    arriero._patience = 0.3
    async with reading(arriero.job(script.key.job), after=after) as reader:
        await eventually(lambda: reader.ended)
    assert isinstance(reader.error, PositionLost)
    assert reader.events == []


async def test_a_job_that_is_not_there_is_not_found(arriero: Arriero, bus: Bus) -> None:
    async with reading(arriero.job("job_nothere")) as reader:
        await eventually(lambda: reader.ended)
    assert isinstance(reader.error, JobNotFound)


async def test_a_job_of_somebody_else_is_not_found_though_it_speaks(arriero: Arriero, bus: Bus) -> None:
    from libs.common.contracts.subjects import JobKey

    async with Script(bus, JobKey("bob", "job_of_bob")).answering() as script:
        await script.submit()
        await script.bind()
        await script.write(A)
        async with reading(arriero.job("job_of_bob")) as reader:
            await eventually(lambda: reader.ended)
    assert isinstance(reader.error, JobNotFound)
    assert reader.events == []


# -- epochs --------------------------------------------------------------------------------------------------------------


async def die(script: Script, base: int) -> int:
    """The worker dies; the router takes the job back, gathers `base` bytes, binds it anew. The new epoch."""
    assert script.binding
    old, log = script.binding, script.log
    past = (*old.past, PastEpoch(epoch=old.epoch))
    await script.requeue(past=past)
    fixed = tuple(PastEpoch(epoch=p.epoch, base=base if p.base is None else p.base) for p in past)
    await script.requeue(past=fixed, base=base)
    return await script.bind(carried=log[:base], past=fixed)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("again", [False, True])
async def test_a_dead_worker_is_succeeded_without_a_gap_or_a_repeat(
    arriero: Arriero, script: Script, again: bool
) -> None:
    """The base covers what was shown; the piece of an event that came after it is void."""
    async with reading(arriero.job(script.key.job)) as reader:
        await script.bind()
        await script.write(A, B, C[:4])
        await eventually(lambda: reader.texts == ["a ", "b "])
        await die(script, len(A + B))
        if again:
            await die(script, len(A + B))
        await script.write(events("d "))
        await script.end()
        await eventually(lambda: reader.ended)
    assert reader.error is None
    assert reader.texts == ["a ", "b ", "d "]


@pytest.mark.usefixtures("patient")
async def test_more_in_the_base_than_was_shown_is_read(arriero: Arriero, script: Script) -> None:
    async with reading(arriero.job(script.key.job)) as reader:
        await script.bind()
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])
        await script.write(B, live=False)
        await die(script, len(A + B))
        await script.write(C)
        await eventually(lambda: reader.texts == ["a ", "b ", "c "])


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("reset", [False, True])
async def test_more_shown_than_the_base_holds_is_an_error_or_a_reset_for_who_asked_for_one(
    arriero: Arriero, script: Script, reset: bool
) -> None:
    async with reading(arriero.job(script.key.job), reset=reset) as reader:
        await script.bind()
        await script.write(A, B)
        await eventually(lambda: reader.texts == ["a ", "b "])
        await die(script, len(A))
        await script.write(C)
        await script.end()
        await eventually(lambda: reader.ended)
    if reset:
        assert [type(event) for event in reader.events] == [Text, Text, Reset, Text, Text]
        assert reader.texts == ["a ", "c "]
        assert reader.error is None
    else:
        assert isinstance(reader.error, PositionLost)
        assert reader.texts == ["a ", "b "]


@pytest.mark.usefixtures("patient")
async def test_a_worker_that_lives_on_after_the_fence_is_not_believed(arriero: Arriero, script: Script) -> None:
    """Its chunks are no part of any log that counts; the requeue's hint says so before the router gathers."""
    async with reading(arriero.job(script.key.job)) as reader:
        old = await script.bind()
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])
        await script.requeue(past=(PastEpoch(epoch=old),))
        (stream,) = arriero._streams
        await eventually(lambda: stream._place._newest > old)
        await script.say(len(A), B, epoch=old)
        past = (PastEpoch(epoch=old, base=len(A)),)
        await script.bind(carried=A, past=past)
        await script.say(len(A), B, epoch=old)
        await script.write(C)
        await script.end()
        await eventually(lambda: reader.ended)
    assert reader.error is None
    assert reader.texts == ["a ", "c "]


@pytest.mark.usefixtures("patient")
async def test_an_epoch_of_which_no_hint_came_is_looked_up_at_its_first_chunk(arriero: Arriero, script: Script) -> None:
    async with reading(arriero.job(script.key.job)) as reader:
        old = await script.bind()
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])
        past = (PastEpoch(epoch=old, base=len(A)),)
        await script.bind(carried=A, past=past, hint=False)
        await script.write(B)
        await eventually(lambda: reader.texts == ["a ", "b "])


@pytest.mark.usefixtures("patient")
async def test_what_is_heard_while_an_answer_is_under_way_is_asked_about_at_once(
    arriero: Arriero, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is older than the hint; the next look must not wait for patience to end."""
    read, go, under_way = stream_module.Stream._read, asyncio.Event(), 0
    go.set()

    async def held(stream: Any, position: Any, **more: Any) -> Any:
        nonlocal under_way
        found = await read(stream, position, **more)
        under_way += 1
        await go.wait()
        return found

    monkeypatch.setattr(stream_module.Stream, "_read", held)
    async with reading(arriero.job(script.key.job)) as reader:
        old = await script.bind()
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])
        (stream,) = arriero._streams
        await eventually(lambda: stream._place.ask is Ask.NOT)
        go.clear()
        before = under_way
        past = (PastEpoch(epoch=old),)
        await script.requeue(past=past)
        await eventually(lambda: under_way > before)
        epoch = await script.bind(carried=A, past=(PastEpoch(epoch=old, base=len(A)),))
        await script.write(B, live=False)
        await eventually(lambda: stream._place._newest == epoch)
        go.set()
        await eventually(lambda: reader.texts == ["a ", "b "])


@pytest.mark.usefixtures("patient")
async def test_positions_are_carried_for_who_resumes_after_the_death(arriero: Arriero, script: Script) -> None:
    old = await script.bind()
    await script.write(A, B, live=False)
    await die(script, len(A))
    await script.write(C, live=False)
    await script.end()
    job = arriero.job(script.key.job)
    async with reading(job, after=f"{old}.{len(A)}") as reader:
        await eventually(lambda: reader.ended)
    assert reader.texts == ["c "]
    async with reading(job, after=f"{old}.{len(A + B)}") as reader:
        await eventually(lambda: reader.ended)
    assert isinstance(reader.error, PositionLost)


async def test_while_an_answer_grows_a_gateway_watches_along(arriero: Arriero, script: Script) -> None:
    """What this service alone has seen, the router could not know: its base would be shorter."""
    async with reading(arriero.job(script.key.job)) as reader:
        epoch = await script.bind()
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])

        async def held() -> bool:
            return (
                await script.bus.ask_all(  # not yet there: nobody answers
                    f"prefix.alice.{script.key.job}", b'{"epoch":0}', within=0.5, limit=1
                )
                != []
            )

        await eventually(held)
        await eventually(lambda: script.reads.count(len(A)) >= 1)
        await script.write(B)
        await eventually(lambda: reader.texts == ["a ", "b "])
        await arriero.job(script.key.job).status()  # answered by the same gateway, after the chunk
        assert await script.freeze(epoch) == b"0|" + A + B


async def test_who_stops_reading_leaves_nothing_behind(arriero: Arriero, script: Script, gateway: Gateway) -> None:
    before = len(arriero._bus._client._subs), len(asyncio.all_tasks())
    await script.bind()
    async with reading(arriero.job(script.key.job)) as reader:
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])
    assert len(arriero._bus._client._subs) == before[0]
    assert arriero._streams == set()
    await eventually(lambda: len(asyncio.all_tasks()) <= before[1] + 1, within=30)


# -- failures around it --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
async def test_a_slow_reader_leaves_a_bounded_queue_and_still_gets_every_event(
    arriero: Arriero, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_queue, "MAX_WAITING", 5_000)
    texts = [f"{n} " for n in range(500)]
    async with reading(arriero.job(script.key.job)) as reader:
        await script.bind()
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])
        (stream,) = arriero._streams
        reader.go.clear()
        for text in texts:
            await script.write(events(text))
            await asyncio.sleep(0)
            assert stream._chunks.size <= 5_000
        last = len(script.log) - len(events(texts[-1]))

        def all_came() -> bool:
            newest = stream._chunks.newest
            return newest is not None and newest.offset == last

        await eventually(all_came)
        assert stream._chunks.size <= 5_000
        reader.go.set()
        await script.end()
        await eventually(lambda: reader.ended)
    assert reader.error is None
    assert reader.texts == ["a ", *texts]


async def test_a_restart_of_nats_in_the_middle_heals(arriero: Arriero, script: Script, nats: NatsServer) -> None:
    async with reading(arriero.job(script.key.job)) as reader:
        await script.bind()
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])
        await nats.kill()
        script.log += B
        await nats.start()
        await eventually(lambda: script.bus.connected)
        await script.write(C)
        await script.end()
        await eventually(lambda: reader.ended, within=40)
    assert reader.error is None
    assert reader.texts == ["a ", "b ", "c "]


async def test_what_was_said_while_nats_was_away_is_asked_for_when_it_is_back(
    arriero: Arriero, script: Script, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for the next chunk, or for silence."""
    monkeypatch.setattr(stream_module, "SILENCE_S", 600.0)
    monkeypatch.setattr(stream_module.Stream, "_watch_along", _nobody)
    async with reading(arriero.job(script.key.job)) as reader:
        await script.bind()
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])
        (stream,) = arriero._streams
        await eventually(lambda: stream._place.ask is Ask.NOT)
        await nats.kill()
        script.log += B
        await nats.start()
        await eventually(lambda: reader.texts == ["a ", "b "], within=40)


@pytest.mark.usefixtures("quick")
async def test_a_gap_waits_for_a_gateway_to_come_back(nats: NatsServer, keys: Any, router: Any, script: Script) -> None:
    async with Arriero.connect(nats.url, client="alice") as arriero, reading(arriero.job(script.key.job)) as reader:
        await eventually(lambda: arriero._streams)
        with pytest.raises(NoGateway):  # when NATS has said so, it has the stream's subscriptions
            await arriero._calls.once("get", {})
        await script.bind()
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])
        await script.write(B, live=False)
        await script.write(C)
        async with running_gateway(nats, drain_grace=0):
            await eventually(lambda: reader.texts == ["a ", "b ", "c "])


@pytest.mark.usefixtures("quick")
async def test_a_gap_that_nobody_can_fill_for_too_long_is_an_error(nats: NatsServer, script: Script) -> None:
    connecting = Arriero.connect(nats.url, client="alice", patience=0.3)
    async with connecting as arriero, reading(arriero.job(script.key.job)) as reader:
        await eventually(lambda: reader.ended)
    assert isinstance(reader.error, NoGateway)
    assert reader.error.retryable


async def test_a_closed_connection_ends_its_streams(nats: NatsServer, gateway: Gateway, script: Script) -> None:
    async with Arriero.connect(nats.url, client="alice") as arriero:
        reader = reading(arriero.job(script.key.job))
        read = await reader.__aenter__()
        await script.bind()
        await script.write(A)
        await eventually(lambda: read.texts == ["a "])
    await eventually(lambda: read.ended)
    assert isinstance(read.error, NotConnected)
    await reader.__aexit__(None, None, None)


async def test_a_cancelled_job_ends_its_stream_with_an_error(arriero: Arriero, script: Script) -> None:
    async with reading(arriero.job(script.key.job)) as reader:
        await script.bind()
        await script.write(A)
        await eventually(lambda: reader.texts == ["a "])
        end = line(Event(end=End(state=JobState.CANCELLED, fault=Fault(code=Code.CANCELLED, message="by its owner"))))
        await script.finish(A + end, state=JobState.CANCELLED)
        await eventually(lambda: reader.ended)
    assert isinstance(reader.error, JobCancelled)
    assert (reader.error.state, reader.error.code, reader.error.retryable) == ("cancelled", "cancelled", False)
    assert isinstance(reader.error, ArrieroError)
