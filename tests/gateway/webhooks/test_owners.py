"""What becomes of webhooks and events when their client is disabled, expires, or is deleted."""

import time
from typing import Any

import msgspec
import pytest

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.contracts.clients import decode_client
from libs.common.contracts.codec import encode
from services.gateway.webhooks import schedule
from tests.gateway.conftest import Keys
from tests.gateway.running import MODEL, RouterStub, add_node, running_gateway
from tests.gateway.webhooks.receiver import receiving
from tests.gateway.webhooks.test_delivery import OWN, emptied, register, submit, succeed
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually


async def change(bus: Bus, name: str, **fields: Any) -> None:
    clients = Bucket(bus, "clients")
    value, _ = await clients.get(f"client.{name}")
    assert value
    await clients.put(f"client.{name}", encode(msgspec.structs.replace(decode_client(value), **fields)))


async def hooks(bus: Bus) -> int:
    """Messages that HOOKS holds."""
    return int((await bus.api("STREAM.INFO.HOOKS"))["state"]["messages"])


async def registered(bus: Bus, client: str) -> bool:
    return (await Bucket(bus, "webhooks").get(client))[0] is not None


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "while no gateway was there"])
async def test_of_a_deleted_client_nothing_is_sent_and_nothing_is_kept(
    nats: NatsServer, bus: Bus, keys: Keys, router: RouterStub, heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One event waits for its next attempt, one job has not ended. Another client keeps what it has."""
    monkeypatch.setattr(schedule, "ATTEMPTS_AT", (0.0, 3600.0, schedule.GIVE_UP_S))
    await add_node(bus, MODEL)
    clients = Bucket(bus, "clients")
    async with receiving() as receiver:
        receiver.status = 500
        async with running_gateway(nats, **OWN) as gateway:
            async with gateway.client(keys.bob) as bob:
                other = await register(bob, f"{receiver.url}/bob")
                await succeed(bus, await submit(bob, other), "x", client="bob")
                await submit(bob, other)
                await eventually(lambda: receiver.got)
            async with gateway.client(keys.alice) as alice:
                webhook = await register(alice, f"{receiver.url}/alice")
                await succeed(bus, await submit(alice, webhook), "x")
                await submit(alice, webhook)
                await eventually(lambda: len(receiver.got) == 2)

                async def to_be_tried_again() -> bool:
                    return (await alice.get(f"/webhooks/{webhook['id']}")).json()["failing_since"] is not None

                async def both_have_two() -> bool:
                    return await hooks(bus) == 4

                await eventually(to_be_tried_again)
                await eventually(both_have_two)
            if heard:
                await clients.delete("client.alice", ttl_s=3600)
                await eventually(lambda: _gone(bus), within=20)
        if not heard:
            await clients.delete("client.alice", ttl_s=3600)
            async with running_gateway(nats, **OWN):
                await eventually(lambda: _gone(bus), within=20)
        assert await registered(bus, "bob")
        assert [got.path for got in receiver.got] == ["/bob", "/alice"], "not once more"


async def _gone(bus: Bus) -> bool:
    return await hooks(bus) == 2 and not await registered(bus, "alice")


async def test_a_record_that_cannot_be_read_deletes_nothing(
    nats: NatsServer, bus: Bus, keys: Keys, router: RouterStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is let in, and nothing is sent, until it can be read again."""
    monkeypatch.setattr(schedule, "SOONEST_S", 0.2)
    await add_node(bus, MODEL)
    async with (
        receiving() as receiver,
        running_gateway(nats, **OWN) as gateway,
        gateway.client(keys.alice) as alice,
    ):
        job = await submit(alice, await register(alice, receiver.url))
        clients = Bucket(bus, "clients")
        value, _ = await clients.get("client.alice")
        assert value
        await clients.put("client.alice", b"{")

        async def refused() -> bool:
            return (await alice.get("/jobs")).status_code == 401

        await eventually(refused)
        await succeed(bus, job, "x")
        await eventually(lambda: _put_off(bus))
        assert receiver.got == []
        await clients.put("client.alice", value)
        await eventually(lambda: receiver.got)
        await eventually(lambda: emptied(bus))


async def _put_off(bus: Bus) -> bool:
    """An event has been looked at more than once, and is still there."""
    info = await bus.api("CONSUMER.INFO.HOOKS.sending")
    return bool(info["num_ack_pending"] and info["num_redelivered"])


async def test_events_of_a_disabled_client_wait_until_it_is_enabled(
    nats: NatsServer, bus: Bus, keys: Keys, router: RouterStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "SOONEST_S", 0.2)
    await add_node(bus, MODEL)
    async with (
        receiving() as receiver,
        running_gateway(nats, **OWN) as gateway,
        gateway.client(keys.alice) as alice,
    ):
        job = await submit(alice, await register(alice, receiver.url))
        await change(bus, "alice", disabled=True)

        async def refused() -> bool:
            return (await alice.get("/jobs")).status_code == 401

        await eventually(refused)
        await succeed(bus, job, "x")
        await eventually(lambda: _put_off(bus))
        assert receiver.got == []
        await change(bus, "alice", disabled=False)
        await eventually(lambda: receiver.got)
        await eventually(lambda: emptied(bus))
        assert await registered(bus, "alice")


async def test_what_an_expired_client_began_is_told(nats: NatsServer, bus: Bus, keys: Keys, router: RouterStub) -> None:
    await add_node(bus, MODEL)
    async with (
        receiving() as receiver,
        running_gateway(nats, **OWN) as gateway,
        gateway.client(keys.alice) as alice,
    ):
        job = await submit(alice, await register(alice, receiver.url))
        await change(bus, "alice", expires_at=int(time.time()) - 1)

        async def refused() -> bool:
            return (await alice.get("/jobs")).status_code == 401

        await eventually(refused)
        await succeed(bus, job, "x")
        await eventually(lambda: receiver.got)
