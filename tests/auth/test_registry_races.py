"""What replicas can do to each other while they change clients and keys, played move by move."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Conflict, Unconfirmed
from libs.common.contracts.clients import ApiKey, Client, decode_client
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, Failed
from libs.common.credentials.directory import Directory
from libs.common.credentials.verifiers import Verifiers
from services.auth import changes
from services.auth import registry as registry_module
from services.auth.registry import Registry
from tests.support.waiting import eventually

SECRET = b"s" * 32


@contextlib.asynccontextmanager
async def replica(bus: Bus) -> AsyncIterator[tuple[Registry, Directory]]:
    directory = Directory(bus)
    following = asyncio.create_task(directory.run())
    try:
        await eventually(lambda: directory.fresh)
        yield Registry(bus, directory, Verifiers(SECRET)), directory
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def client(name: str, **more: Any) -> Client:
    return Client(id=name, name=name, **more)


def before_the_write(monkeypatch: pytest.MonkeyPatch, verb: str, act: Callable[[], Awaitable[Any]]) -> None:
    """Once, after everything was looked at and decided."""
    original = getattr(Bucket, verb)
    left = [act]

    async def slow(self: Bucket, key: str, *values: Any, **more: Any) -> Any:
        if left and more.get("among"):
            await left.pop()()
        return await original(self, key, *values, **more)

    monkeypatch.setattr(Bucket, verb, slow)


async def refusal(asked: Awaitable[Any]) -> Code:
    with pytest.raises(Failed) as refused:
        await asked
    return refused.value.fault.code


async def test_what_was_decided_about_all_clients_is_decided_anew_when_one_of_them_changed(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other administrator goes between our look and our write."""
    async with replica(bus) as (one, _), replica(bus) as (two, _):
        for name in ("ann", "bea"):
            await one.create_client(client(name, scopes=("admin:clients",)), with_secret=True)

        async def bea_goes() -> None:
            await two.change_client("bea", lambda known: changes.disabled(known, 0))

        before_the_write(monkeypatch, "put", bea_goes)
        code = await refusal(one.change_client("ann", lambda known: changes.disabled(known, 0)))
        assert code is Code.LAST_ADMINISTRATOR


@pytest.mark.parametrize("verb", ["put", "delete"])
async def test_who_is_overtaken_again_and_again_is_told_to_come_back(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    async with replica(bus) as (registry, _):
        await registry.create_client(client("ann"), with_secret=True)

        async def conflict(self: Bucket, key: str, *values: Any, **more: Any) -> int:
            raise Conflict("another was first")

        monkeypatch.setattr(Bucket, verb, conflict)
        asked = (
            registry.change_client("ann", lambda known: changes.disabled(known, 0))
            if verb == "put"
            else registry.delete_client("ann")
        )
        assert await refusal(asked) is Code.UNAVAILABLE


async def test_a_change_whose_ack_got_lost_is_read_back(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica(bus) as (registry, directory):
        await registry.create_client(client("ann"), with_secret=True)
        original, stores = Bucket.put, [True, False]

        async def put(self: Bucket, key: str, value: bytes, **more: Any) -> int:
            if stores.pop(0):
                await original(self, key, value, **more)
            raise Unconfirmed("the ack got lost")

        monkeypatch.setattr(Bucket, "put", put)
        changed = await registry.change_client("ann", lambda known: msgspec.structs.replace(known, disabled=True))
        assert directory.clients["ann"] == changed
        with pytest.raises(Unconfirmed):
            await registry.change_client("ann", changes.enabled)
        assert directory.clients["ann"].disabled


async def test_on_old_knowledge_nothing_is_decided(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "SEEN_WITHIN_S", 0.05)
    await Bucket(bus, "clients").put("client.ann", encode(client("ann")))
    deaf = Registry(bus, Directory(bus), Verifiers(SECRET))
    assert await refusal(deaf.change_client("ann", changes.enabled)) is Code.UNAVAILABLE
    assert await refusal(deaf.delete_client("ann")) is Code.UNAVAILABLE


async def test_a_key_that_is_made_while_its_client_goes_goes_too(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica(bus) as (one, _), replica(bus) as (two, there):
        await one.create_client(client("ann"), with_secret=True)
        await eventually(lambda: "ann" in there.clients)
        original = Bucket.put

        async def put(self: Bucket, key: str, value: bytes, **more: Any) -> int:
            if key.startswith("key."):
                await one.delete_client("ann")
            return await original(self, key, value, **more)

        monkeypatch.setattr(Bucket, "put", put)
        assert await refusal(two.create_key("ann")) is Code.NOT_FOUND
        await eventually(lambda: not there.keys)
        assert await refusal(two.create_key("ann")) is Code.NOT_FOUND


async def test_a_deletion_that_was_cut_short_is_finished_by_the_next_or_by_who_takes_the_name(bus: Bus) -> None:
    async with replica(bus) as (registry, directory):
        orphan = ApiKey(id="orphan", client="ann", verifier="0")
        for finish in ("delete", "create"):
            await Bucket(bus, "clients").put("key.orphan", encode(orphan))
            await eventually(lambda: "orphan" in directory.keys)
            if finish == "delete":
                assert await registry.delete_client("ann") == ["orphan"]
            else:
                await registry.create_client(client("ann"), with_secret=True)
            await eventually(lambda: "orphan" not in directory.keys)


async def test_an_operator_that_starts_twice_at_once_is_made_once(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica(bus) as (one, _), replica(bus) as (two, _):
        before_the_write(monkeypatch, "put", lambda: two.ensure_operator("root", "a" * 40))
        await one.ensure_operator("root", "b" * 40)
        value, _ = await Bucket(bus, "clients").get("client.root")
        assert value is not None
        assert decode_client(value).verifiers == (Verifiers(SECRET).of("b" * 40),), "the later one's setting"
        await one.change_client("root", lambda known: changes.rotated(known, "v", 0, grace_s=2**20, end_tokens=False))
        await one.ensure_operator("root", "b" * 40)
        value, _ = await Bucket(bus, "clients").get("client.root")
        assert value is not None
        assert decode_client(value).replaced == ()


def test_the_secrets_before_count_no_longer_than_was_said() -> None:
    """Pure: each keeps its own end, the newest of them first, and never more than three."""
    record = client("ann", verifiers=("v0",))
    for n in range(1, 6):
        record = changes.rotated(record, f"v{n}", now=100.0 * n, grace_s=1000 - 100 * n, end_tokens=False)
    assert record.verifiers == ("v5",)
    assert [(old.verifier, old.until) for old in record.replaced] == [("v4", 1000), ("v3", 1000), ("v2", 1000)]
    shorter = changes.rotated(record, "v6", now=600.0, grace_s=5, end_tokens=False)
    assert [(old.verifier, old.until) for old in shorter.replaced] == [("v5", 605), ("v4", 605), ("v3", 605)]
    later = changes.rotated(shorter, "v7", now=700.0, grace_s=50, end_tokens=False)
    assert [(old.verifier, old.until) for old in later.replaced] == [("v6", 750)]
    ended = changes.rotated(later, "v8", now=701.9, grace_s=0, end_tokens=True)
    assert (ended.replaced, ended.not_before) == ((), 707)
    assert changes.disabled(changes.disabled(ended, 800.0), 900.0).not_before == 806
    assert changes.disabled(ended, 10.0).not_before == 707, "never earlier than it was"
