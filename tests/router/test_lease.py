"""One active router at a time, and a standby that takes over (DESIGN §3, Router)."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away
from services.router import lease as module
from services.router.lease import Lease
from tests.router.building import Routers, ended, submit
from tests.support.fake_worker import fake_worker
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.2)
    monkeypatch.setattr(module, "LOOK_S", 0.05)


@contextlib.asynccontextmanager
async def holding(bus: Bus, boot: str) -> AsyncIterator[tuple[Lease, list[bool], asyncio.Task[None]]]:
    said: list[bool] = []

    async def on_change(active: bool) -> None:
        said.append(active)

    lease = Lease(bus, boot, on_change)
    task = asyncio.create_task(lease.run())
    try:
        yield lease, said, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def steps(lease: Lease, count: int) -> None:
    """So many looks at the lease later."""
    for _ in range(count):
        before = lease._looked_at
        await eventually(lambda before=before: lease._looked_at != before)


async def test_only_one_of_two_is_active(bus: Bus, nats: NatsServer) -> None:
    async with connected(nats) as other_bus, holding(bus, "r1") as (one, _, _), holding(other_bus, "r2") as (two, _, _):
        await eventually(lambda: one.active or two.active)
        await eventually(lambda: one._looked_at and two._looked_at)
        for _ in range(5):
            assert one.active != two.active
            await steps(two if one.active else one, 1)
        assert one.problem() is None
        assert two.problem() is None


async def test_a_standby_takes_over_at_once_after_a_release_and_the_first_does_not_take_it_back(
    bus: Bus, nats: NatsServer
) -> None:
    async with connected(nats) as other_bus, holding(bus, "r1") as (one, _, _):
        await eventually(lambda: one.active)
        async with holding(other_bus, "r2") as (two, said, _):
            await eventually(lambda: two._looked_at)
            assert not two.active
            await one.release()
            assert not one.active
            await eventually(lambda: two.active, within=1)
            await eventually(lambda: said == [True])
            await steps(one, 4)
            assert (one.active, two.active) == (False, True)


async def test_a_released_lease_stays_free_when_nobody_else_is_there(bus: Bus) -> None:
    """On the way out the renewing task goes on for a moment."""
    async with holding(bus, "r1") as (one, said, _):
        await eventually(lambda: one.active)
        await one.release()
        await eventually(lambda: said == [True, False])
        await steps(one, 4)
        assert not one.active
        value, _ = await one._bucket.get(module.KEY)
        assert value is None or module.decode_lease(value).boot == ""


async def test_a_standby_takes_over_when_the_holders_process_is_gone(bus: Bus, nats: NatsServer) -> None:
    """Three times nobody: no need to wait until the record expires."""
    async with connected(nats) as other_bus:
        dying = Bus("")
        await dying.open([nats.url])
        async with holding(dying, "r1") as (one, _, task):
            await eventually(lambda: one.active)
            task.cancel()
            await dying.close()
            began = time.monotonic()
            async with holding(other_bus, "r2") as (two, _, _):
                await eventually(lambda: two.active, within=3)
                assert time.monotonic() - began < module.TTL_S / 2


async def test_a_standby_takes_over_from_a_silent_holder_when_the_lease_has_run_out(
    bus: Bus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process answers pings but does not renew: after the lease's time, and not before, it is somebody else's."""
    monkeypatch.setattr(module, "TTL_S", 2)
    async with connected(nats) as other_bus, holding(bus, "r1") as (one, _, task):
        await eventually(lambda: one.active)
        task.cancel()
        async with holding(other_bus, "r2") as (two, _, _):
            await eventually(lambda: not one.active, within=3)
            assert not two.active  # gives up before anybody else may begin
            await eventually(lambda: two.active, within=5)


async def test_a_slow_holder_is_not_gone(bus: Bus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time-out says nothing: only `no responders` does."""
    async with connected(nats) as other_bus, holding(bus, "r1") as (one, _, _):
        await eventually(lambda: one.active)
        asked = asyncio.Event()

        async def silent(message: object) -> None:
            asked.set()

        monkeypatch.setattr(other_bus, "request", _slow(other_bus, asked))
        async with holding(other_bus, "r2") as (two, _, _):
            await asyncio.wait_for(asked.wait(), 5)
            await steps(two, 4)
            assert (one.active, two.active) == (True, False)


def _slow(bus: Bus, asked: asyncio.Event):  # type: ignore[no-untyped-def]
    async def request(*_: object, **__: object) -> bytes:
        asked.set()
        await asyncio.sleep(0.05)
        raise Away("no answer")

    return request


async def test_when_the_active_router_is_shut_down_the_standby_goes_on_with_the_jobs(
    bus: Bus, nats: NatsServer, routers: Routers
) -> None:
    """Through the service's own start and drain."""
    routers.with_lease()
    async with connected(nats) as other_bus, fake_worker(bus, finish_after=0.05) as worker:
        async with contextlib.AsyncExitStack() as second:
            async with routers.one(bus, drained=True) as first:
                await ended(bus, await submit(bus))
                standby = await second.enter_async_context(routers.one(other_bus))
                assert (first._is_active(), standby._is_active()) == (True, False)
                keys = [await submit(bus) for _ in range(5)]
            for key in keys:
                await ended(bus, key)
        assert set(worker.executed.values()) == {1}
        assert worker.most == 1
