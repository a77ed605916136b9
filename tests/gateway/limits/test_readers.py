"""`open_streams` and `requests_per_minute` of who reads over NATS: two gateways, of which NATS chooses one for each call."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest

from libs.client import Arriero, Limited
from libs.common.bus.connection import Bus
from libs.common.states import JobState
from services.gateway.limits import pace, reader_slots
from tests.client.reading import reading
from tests.gateway.calling import Service
from tests.gateway.conftest import adopt
from tests.gateway.limits.test_tokens import job_of, ledger_of, limited
from tests.gateway.scripted import events
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("router")


@contextlib.asynccontextmanager
async def service(nats: NatsServer, bus: Bus, **limits: int) -> AsyncIterator[tuple[Service, list[httpx.AsyncClient]]]:
    async with limited(nats, bus, 2, **limits) as (clients, _, _), connected(nats, "acme") as own:
        yield Service(own), clients


async def submitted(client: httpx.AsyncClient) -> str:
    return str((await client.post("/jobs", json=job_of(9))).json()["id"])


async def refused(service: Service, job: str, reader: str, **more: float) -> bool:
    answer = await service.ask("read", {"id": job, "reader": reader} | more)
    assert answer.get("fault", {"code": "rate_limited"})["code"] == "rate_limited"
    return "fault" in answer


async def test_streams_over_nats_and_http_are_counted_together(nats: NatsServer, bus: Bus) -> None:
    async with service(nats, bus, open_streams=2) as (asking, (one, other)):
        job = await submitted(one)
        async with one.stream("GET", f"/jobs/{job}/stream") as first:
            assert first.status_code == 200
            for _ in range(6):  # at both gateways, whichever was asked before
                assert not await refused(asking, job, "mine")
                assert await refused(asking, job, "another")
                assert await refused(asking, job, "")
            assert (await other.get(f"/jobs/{job}/stream")).status_code == 429
            await asking.ok("leave", {"id": job, "reader": "mine"})
            assert not await refused(asking, job, "another")
            assert await refused(asking, job, "mine"), "it has left"


async def test_a_reader_that_does_not_go_on_is_not_counted_for_long(
    nats: NatsServer, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_slots, "HOLDS_MS", 500)
    async with service(nats, bus, open_streams=1) as (asking, (one, _)):
        job = await submitted(one)
        assert not await refused(asking, job, "dies", wait_s=0.2)
        assert (await ledger_of(bus)).readers.keys() == {f"{job}.dies"}

        async def free() -> bool:
            return not await refused(asking, job, "next")

        await eventually(free)


async def test_a_stream_ends_with_the_answer_that_nothing_more_comes(nats: NatsServer, bus: Bus) -> None:
    """Not with the last bytes, wherever they begin: who gets them asks once more, and that is the same stream."""
    async with service(nats, bus, open_streams=2, requests_per_minute=4) as (asking, (one, _)):
        job = await submitted(one)
        script = await adopt(bus, job, "acme")
        epoch = await script.bind()
        script.log = events(*["x" * 1000] * 600)
        whole = await script.finish()
        for offset in (0, 12):
            log = whole[:offset]
            while piece := (await asking.ok("read", {"id": job, "epoch": epoch, "offset": len(log)})).get("log"):
                log += base64.b64decode(piece)
                assert (await ledger_of(bus)).readers.keys() == {job}
            assert log == whole
            assert (await ledger_of(bus)).readers == {}
        for wait_s, left in ((1, {job}), (0, set())):  # who waits watches along beside one who may be behind
            assert not await refused(asking, job, "", epoch=epoch, offset=len(whole), wait_s=wait_s)
            assert (await ledger_of(bus)).readers.keys() == left


async def test_who_watches_along_does_not_end_the_stream_of_who_is_behind(nats: NatsServer, bus: Bus) -> None:
    async with (
        service(nats, bus, open_streams=1, requests_per_minute=2) as (_, (one, _)),
        Arriero.connect(nats.url, client="acme", patience=0.2) as arriero,
    ):
        job = await submitted(one)
        script = await adopt(bus, job, "acme")
        await script.bind()
        async with script.answering(), reading(arriero.job(job)) as reader:
            await script.write(events("one "))
            await eventually(lambda: any(stream._watching for stream in arriero._streams))
            reader.go.clear()
            (stream,) = arriero._streams
            await script.write(events("two "), live=False)
            await script.finish()
            await eventually(lambda: stream._is_written)
            reader.go.set()
            await eventually(lambda: reader.ended)
            assert (reader.error, reader.texts) == (None, ["one ", "two "])


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.EXPIRED])
async def test_a_log_without_an_end_event_is_one_stream_of_the_client_library(
    nats: NatsServer, bus: Bus, state: JobState
) -> None:
    async with (
        service(nats, bus, requests_per_minute=2) as (_, (one, _)),
        Arriero.connect(nats.url, client="acme", patience=0.2) as arriero,
    ):
        job = await submitted(one)
        script = await adopt(bus, job, "acme")
        await script.bind()
        await script.finish(events("one "), state=state)
        async with reading(arriero.job(job)) as reader:
            await eventually(lambda: reader.ended)
            assert reader.texts == ["one "]
            assert reader.error is not None
            assert reader.error.code == state


async def test_reads_that_begin_a_stream_together_are_one_request(nats: NatsServer, bus: Bus) -> None:
    async with service(nats, bus, requests_per_minute=2) as (asking, (one, _)):
        job = await submitted(one)
        answers = await asyncio.gather(*(refused(asking, job, "one") for _ in range(10)))
        assert answers == [False] * 10
        assert await refused(asking, job, "two")
        assert (await ledger_of(bus)).readers.keys() == {f"{job}.one"}, "what was refused has no place"


async def test_a_stream_is_read_only_so_fast(nats: NatsServer, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "BURST", 3)
    monkeypatch.setattr(pace, "READS_PER_S", 0.01)
    async with service(nats, bus, requests_per_minute=50) as (asking, (one, _)):
        job = await submitted(one)
        found = [await refused(asking, job, "one") for _ in range(8)]
        assert found[:3] == [False] * 3
        assert 3 <= found.count(False) <= 6, "each of two gateways has its own count"
        assert not await refused(asking, job, "two")


async def test_who_waits_for_a_place_sends_no_requests(nats: NatsServer, bus: Bus) -> None:
    async with service(nats, bus, open_streams=1, requests_per_minute=3) as (asking, (one, _)):
        job = await submitted(one)
        assert not await refused(asking, job, "first")
        for _ in range(6):
            assert await refused(asking, job, "second")
        await asking.ok("leave", {"id": job, "reader": "first"})
        assert not await refused(asking, job, "second")


async def test_what_cannot_be_read_takes_no_place(nats: NatsServer, bus: Bus) -> None:
    async with service(nats, bus, open_streams=1) as (asking, _):
        assert (await asking.fault("read", {"id": "job_nothere"}))["code"] == "job_not_found"
        assert (await ledger_of(bus)).readers == {}


async def test_a_job_that_is_erased_is_not_read_any_more(nats: NatsServer, bus: Bus) -> None:
    async with service(nats, bus, open_streams=1) as (asking, (one, _)):
        job = await submitted(one)
        script = await adopt(bus, job, "acme")
        await script.bind()
        await script.finish()
        assert not await refused(asking, job, "")
        assert (await one.delete(f"/jobs/{job}")).status_code == 200
        assert (await asking.fault("read", {"id": job}))["code"] == "job_not_found"
        assert (await ledger_of(bus)).readers == {}


async def test_of_the_reads_of_a_stream_the_first_is_a_request_wherever_it_begins(nats: NatsServer, bus: Bus) -> None:
    """Over HTTP a stream is one request, however often it has to be repaired; and so is one that resumes."""
    async with service(nats, bus, requests_per_minute=3) as (asking, (one, _)):
        job = await submitted(one)
        for position in ({"epoch": 1, "offset": 1}, {}, {"wait_s": 0.01}):
            for _ in range(3):
                assert not await refused(asking, job, "one", **position)
        assert not await refused(asking, job, "two", epoch=1, offset=1)
        assert await refused(asking, job, "three", epoch=1, offset=1)
        assert await refused(asking, job, "four", wait_s=1)
        assert not await refused(asking, job, "two")
        assert (await ledger_of(bus)).readers.keys() == {f"{job}.one", f"{job}.two"}


async def test_who_has_no_such_limit_costs_no_write(nats: NatsServer, bus: Bus) -> None:
    async with service(nats, bus, tokens_per_month=1000) as (asking, (one, _)):
        job = await submitted(one)
        before = await ledger_of(bus)
        for n in range(5):
            assert not await refused(asking, job, f"r{n}")
        assert await ledger_of(bus) == before


async def test_the_client_library_waits_for_its_turn_shows_nothing_before_and_leaves(
    nats: NatsServer, bus: Bus
) -> None:
    async with (
        service(nats, bus, open_streams=1) as (_, (one, _)),
        Arriero.connect(nats.url, client="acme") as arriero,
    ):
        jobs = [await submitted(one) for _ in range(2)]
        scripts = [await adopt(bus, job, "acme") for job in jobs]
        async with scripts[0].answering():  # alone: it says for both jobs what it knows, the other's tokens come live
            for script in scripts:
                await script.bind()
            async with reading(arriero.job(jobs[0])) as first:
                await scripts[0].write(events("one "))
                await eventually(lambda: first.texts == ["one "])
                async with reading(arriero.job(jobs[1])) as second:
                    await eventually(lambda: any(stream._is_held_back for stream in arriero._streams))
                    await scripts[1].write(events("two "))
                    await arriero.job(jobs[1]).status()  # asked after the chunk on the same connection
                    assert second.texts == []
                    first.task.cancel()
                    await eventually(lambda: second.texts == ["two "])
            assert (await ledger_of(bus)).readers == {}


async def test_what_came_before_the_client_library_was_let_in_is_not_shown(nats: NatsServer, bus: Bus) -> None:
    async with service(nats, bus, open_streams=1) as (asking, (one, _)):
        job = await submitted(one)
        assert not await refused(asking, job, "first")
        script = await adopt(bus, job, "acme")
        await script.bind()
        async with (
            Arriero.connect(nats.url, client="acme", patience=0.0) as arriero,
            arriero.job(job)._opened(None, takes_reset=False) as stream,
        ):
            await arriero.job(job).status()  # asked after the subscription on the same connection, so NATS has that
            await script.write(events("one "))
            await eventually(lambda: bool(stream._chunks))
            with pytest.raises(Limited):
                await anext(stream.events())


async def test_the_client_library_says_at_last_that_there_were_too_many(nats: NatsServer, bus: Bus) -> None:
    async with service(nats, bus, open_streams=1) as (asking, (one, _)):
        job = await submitted(one)
        assert not await refused(asking, job, "first")
        async with (
            Arriero.connect(nats.url, client="acme", patience=0.2) as arriero,
            reading(arriero.job(job)) as reader,
        ):
            await eventually(lambda: reader.ended)
        assert isinstance(reader.error, Limited)
        assert "may have 1 streams open at once" in reader.error.message
