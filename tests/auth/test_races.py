"""Races that a test over HTTP would only meet by chance, played move by move."""

import asyncio
from typing import Any

import pytest

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Unconfirmed
from libs.common.contracts.clients import Client
from libs.common.contracts.codec import encode
from libs.common.credentials.directory import Directory
from libs.common.credentials.verifiers import Verifiers
from services.auth import registry as registry_module
from services.auth.keyring import Keyring
from services.auth.registry import Registry
from services.auth.rotation import Schedule
from tests.support.waiting import eventually

SECRET = b"s" * 32
ALICE = Client(id="alice", name="alice")


async def test_of_replicas_that_all_find_no_key_one_makes_it_and_the_others_read_it(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three have looked before the first one writes."""
    looked = asyncio.Barrier(3)
    original = Bucket.get

    async def get(self: Bucket, key: str) -> Any:
        found = await original(self, key)
        await looked.wait()
        return found

    monkeypatch.setattr(Bucket, "get", get)
    replicas = [Keyring(bus, SECRET, Schedule(3600, 330)) for _ in range(3)]
    tasks = [asyncio.create_task(replica.run()) for replica in replicas]
    await eventually(lambda: all(replica.check() is None for replica in replicas))
    assert len({tuple(replica.public) for replica in replicas}) == 1
    assert (await bus.api("STREAM.INFO.KV_signing"))["state"]["last_seq"] == 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_client_is_answered_only_after_this_replica_knows_it(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "SEEN_WITHIN_S", 30.0)
    directory = Directory(bus)  # it does not follow yet
    registry = Registry(bus, directory, Verifiers(SECRET))
    creating = asyncio.create_task(registry.create_client(ALICE, with_secret=True))

    async def stored() -> bool:
        return (await Bucket(bus, "clients").get("client.alice"))[0] is not None

    await eventually(stored)
    await asyncio.wait([creating], timeout=0.2)
    assert not creating.done()
    following = asyncio.create_task(directory.run())
    made = await asyncio.wait_for(creating, 20)
    assert directory.clients["alice"] == made.client
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


@pytest.mark.parametrize("is_there_already", [False, True])
async def test_the_operator_counts_as_stored_only_when_this_replica_knows_it(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, is_there_already: bool
) -> None:
    """Readiness depends on it: who is sent here then must not be told that there is no such client."""
    monkeypatch.setattr(registry_module, "SEEN_WITHIN_S", 30.0)
    bucket, verifiers = Bucket(bus, "clients"), Verifiers(SECRET)
    if is_there_already:
        root = Client(id="root", name="root", verifiers=(verifiers.of("s" * 40),))
        await bucket.put("client.root", encode(root))
    directory = Directory(bus)  # it does not follow yet
    ensuring = asyncio.create_task(Registry(bus, directory, verifiers).ensure_operator("root", "s" * 40))

    async def stored() -> bool:
        return (await bucket.get("client.root"))[0] is not None

    await eventually(stored)
    await asyncio.wait([ensuring], timeout=0.2)
    assert not ensuring.done()
    following = asyncio.create_task(directory.run())
    assert await asyncio.wait_for(ensuring, 20) == ("" if is_there_already else "create")
    assert "root" in directory.clients
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_client_is_answered_in_the_end_when_the_follower_hangs(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored, so "failed" would be wrong; it will be known here a little later."""
    monkeypatch.setattr(registry_module, "SEEN_WITHIN_S", 0.05)
    made = await Registry(bus, Directory(bus), Verifiers(SECRET)).create_client(ALICE, with_secret=True)
    assert made.client.id == "alice"


async def test_a_write_whose_ack_got_lost_is_read_back(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "SEEN_WITHIN_S", 0.05)
    original = Bucket.put
    stores = [True, False]

    async def put(self: Bucket, key: str, value: bytes, **more: Any) -> int:
        if stores.pop(0):
            await original(self, key, value, **more)
        raise Unconfirmed("the ack got lost")

    monkeypatch.setattr(Bucket, "put", put)
    registry = Registry(bus, Directory(bus), Verifiers(SECRET))
    made = await registry.create_client(ALICE, with_secret=True)
    assert made.client.id == "alice"
    with pytest.raises(Unconfirmed):
        await registry.create_client(Client(id="bob", name="bob"), with_secret=True)
