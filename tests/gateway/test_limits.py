"""Every table of a gateway has a bound, and who meets it is told so."""

import asyncio
import contextlib

import httpx
import pytest

from libs.common.bus.connection import Bus
from libs.common.bus.provision import create_missing
from libs.common.contracts.faults import Code, Failed
from services.gateway import fleet, internal, metrics, pressure, readers
from services.gateway.fleet import FleetView
from services.gateway.intake import Intake, Share
from services.gateway.readers import Readers
from tests.gateway.conftest import Keys, adopt
from tests.gateway.running import MODEL, Gateway, RouterStub, add_client, add_node, running_gateway
from tests.gateway.scripted import events
from tests.support.nats_server import NatsServer, connected, nats_server
from tests.support.waiting import eventually

# -- the store is full -----------------------------------------------------------------------------------------------------


async def test_a_store_that_is_nearly_full_takes_no_new_jobs_but_finishes_those_it_has(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full one would refuse results as well. It takes jobs again once there is room."""
    monkeypatch.setattr(pressure, "LOOK_S", 0.05)
    async with contextlib.AsyncExitStack() as stack:
        nats = await stack.enter_async_context(nats_server(tmp_path / "nats", provision=False))  # type: ignore[operator]
        bus = await stack.enter_async_context(connected(nats))
        await create_missing(bus, free_disk=8 * 1024 * 1024)  # JOBS gets a quarter
        key = await add_client(bus, "alice")
        await add_node(bus, MODEL)
        gateway = await stack.enter_async_context(running_gateway(nats, drain_grace=0))
        await stack.enter_async_context(RouterStub(bus))
        alice = await stack.enter_async_context(gateway.client(key))
        jobs: list[str] = []

        async def refused() -> httpx.Response | None:
            answer = await alice.post("/jobs", json={"model": MODEL, "prompt": "x" * 100_000})
            if answer.status_code == 202:
                jobs.append(answer.json()["id"])
                info = await bus.api("STREAM.INFO.JOBS")
                share = info["state"]["bytes"] / info["config"]["max_bytes"]
                await eventually(lambda: metrics.jobs_full._value.get() >= share)  # the gateway has seen it
                return None
            return answer

        answer: httpx.Response = await eventually(refused, within=60)
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        chat = await alice.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
        )
        assert (chat.status_code, chat.json()["error"]["code"]) == (503, "overloaded")
        assert 0.8 <= metrics.jobs_full._value.get() < 1
        info = (await bus.api("STREAM.INFO.JOBS"))["state"]
        script = await adopt(bus, jobs[0])
        async with script.answering():
            await script.bind()
            await script.write(events("still "))
            await script.end()
        assert (await alice.get(f"/jobs/{jobs[0]}")).json()["state"] == "succeeded"
        assert info["messages"] == len(jobs), "nothing was stored of what was refused"
        for job in jobs[:-1]:
            if job != jobs[0]:
                await (await adopt(bus, job)).finish()
            assert (await alice.delete(f"/jobs/{job}")).json()["erased"] is True
        await eventually(lambda: _is_taken(alice))
        assert metrics.jobs_full._value.get() < 0.8


async def _is_taken(client: httpx.AsyncClient) -> bool:
    return (await client.post("/jobs", json={"model": MODEL, "prompt": "x"})).status_code == 202


# -- readers ---------------------------------------------------------------------------------------------------------------


def test_one_client_cannot_take_all_places_of_readers() -> None:
    table = Readers(limit=5, per_client=3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(table.one("alice"))
        with pytest.raises(Failed) as caught, table.one("alice"):
            pass
        assert caught.value.fault.code is Code.OVERLOADED
        assert "of this client" in caught.value.fault.message
        for _ in range(2):
            stack.enter_context(table.one("bob"))
        with pytest.raises(Failed, match="this gateway"), table.one("carol"):
            pass
    assert not table._open, "clients that have gone are forgotten"


async def test_too_many_streams_of_a_client_are_refused_before_they_begin_and_nothing_of_them_stays(
    alice: httpx.AsyncClient, bob: httpx.AsyncClient, gateway: Gateway, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = (await alice.post("/jobs", json={"model": MODEL, "prompt": "x"})).json()["id"]
    service = _service_of(gateway)
    monkeypatch.setattr(service, "_readers", Readers(limit=3, per_client=2))
    before = gateway.subscriptions
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(alice.stream("GET", f"/jobs/{job}/stream"))
        open_now = gateway.subscriptions
        for path in (f"/jobs/{job}/stream", f"/jobs/{job}?wait=5"):
            async with asyncio.timeout(10):  # a stream that is not refused would never end
                answer = await alice.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
            assert "retry-after" in answer.headers
        chat = await alice.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
        )
        assert chat.status_code == 503
        assert (await alice.get(f"/jobs/{job}")).status_code == 200, "a look holds no place"
        assert gateway.subscriptions == open_now
        other = (await bob.post("/jobs", json={"model": MODEL, "prompt": "x"})).json()["id"]
        await stack.enter_async_context(bob.stream("GET", f"/jobs/{other}/stream"))
    await eventually(lambda: gateway.subscriptions == before)


def _service_of(gateway: Gateway) -> object:
    (route,) = [r for r in gateway.running.ports[0].app.routes if r.path == "/jobs" and "POST" in r.methods]
    return route.app.spec.handler.__self__._service


def test_the_limits_leave_room_for_what_is_promised() -> None:
    """10,000 open streams at one gateway (DESIGN §6), if need be of one client."""
    assert readers.MAX_READERS_PER_CLIENT == 10_000
    assert readers.MAX_READERS >= 2 * readers.MAX_READERS_PER_CLIENT


# -- bodies ----------------------------------------------------------------------------------------------------------------


def test_all_bodies_together_have_a_limit_and_give_it_back_once() -> None:
    intake = Intake(10, together=0)
    assert intake.limit == 40
    with intake.one() as first, intake.one() as second:
        first.count(30)
        with pytest.raises(Failed) as caught:
            second.count(11)
        assert caught.value.fault.code is Code.OVERLOADED
        first.free()
        second.count(11)
        assert intake.held == 11
    assert intake.held == 0


async def test_a_chat_holds_its_question_only_until_it_is_stored(
    alice: httpx.AsyncClient, gateway: Gateway, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    count = Share.count

    def note(share: Share, size: int) -> None:
        counted.append(size)
        count(share, size)

    monkeypatch.setattr(Share, "count", note)
    (route,) = [r for r in gateway.running.ports[0].app.routes if r.path == "/v1/chat/completions"]
    intake = route.app.spec.handler.__self__._intake
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 300_000}], "stream": True}
    asking = asyncio.create_task(alice.post("/v1/chat/completions", json=body))
    await eventually(lambda: sum(counted) > 300_000)
    await eventually(lambda: intake.held == 0)
    assert not asking.done()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_a_body_that_trickles_is_not_waited_for_for_ever(nats: NatsServer, keys: Keys) -> None:
    """Each byte comes in time, and yet it never ends. (More of this in tests/edge.)"""
    async with running_gateway(nats, drain_grace=0, body_timeout=0.3, min_rate=0) as gateway:
        await _trickle(httpx.URL(gateway.url), keys)


async def _trickle(address: httpx.URL, keys: Keys) -> None:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    head = f"POST /jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {keys.alice}\r\nContent-Length: 1000\r\n\r\n"
    writer.write(head.encode())

    async def trickle() -> None:
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.01)

    trickling = asyncio.create_task(trickle())
    try:
        assert b"408 Request Timeout" in await asyncio.wait_for(reader.readline(), 20)
    finally:
        trickling.cancel()
        writer.close()


# -- the fleet -------------------------------------------------------------------------------------------------------------


async def test_nodes_that_are_gone_for_good_are_forgotten(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their records expire in the bucket without a word."""
    view = FleetView(bus)
    following = asyncio.create_task(view.follower.run())
    try:
        for n in range(20):
            await add_node(bus, MODEL, node=f"n{n}")
        await eventually(lambda: len(view.nodes()) == 20)
        monkeypatch.setattr(fleet, "RECORD_TTL_S", 0.0)
        assert view.nodes() == []
        assert not view._beats
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


# -- the door for services -----------------------------------------------------------------------------------------------


async def test_waits_of_one_service_do_not_use_up_what_all_have(
    gateway: Gateway, alice: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(internal, "MAX_CALLS_PER_CLIENT", 2)
    job = (await alice.post("/jobs", json={"model": MODEL, "prompt": "x"})).json()["id"]
    async with connected_as(bus, gateway, "alice") as one, connected_as(bus, gateway, "bob") as other:
        wait = b'{"id":"%s","wait_s":20}' % job.encode()
        before = gateway.subscriptions
        waiting = [asyncio.create_task(one.request("api.alice.get", wait, timeout=30)) for _ in range(2)]
        await eventually(lambda: gateway.subscriptions == before + 6)
        assert b"overloaded" in await one.request("api.alice.get", wait, timeout=20)
        assert b'"ok"' in await other.request("api.bob.list", timeout=20)
        script = await adopt(bus, job)
        await script.bind()
        await script.finish()
        assert all(b'"ok"' in answer for answer in await asyncio.gather(*waiting))
        assert b'"ok"' in await one.request("api.alice.get", wait, timeout=20)


@contextlib.asynccontextmanager
async def connected_as(bus: Bus, gateway: Gateway, user: str):  # type: ignore[no-untyped-def]
    """A connection with that client's inboxes."""
    own = Bus(user)
    await own.open([bus._client.connected_url.geturl()])  # type: ignore[union-attr]
    try:
        yield own
    finally:
        await own.close()
