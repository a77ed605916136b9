"""Buckets over a real server: compare and set, life times, markers."""

import asyncio

import pytest

from libs.common.bus.buckets import Bucket, value_of
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Conflict, NoResponders, Refused
from libs.common.bus.stored import Stored
from libs.common.contracts.headers import KV_OPERATION, MARKER_REASON
from libs.common.contracts.streams import LEASES, MODELS
from tests.support.waiting import eventually


@pytest.fixture
def leases(bus: Bus) -> Bucket:
    return Bucket(bus, LEASES)


@pytest.fixture
async def marking(bus: Bus) -> Bucket:
    """A bucket whose server leaves a marker where a value expired; ours do not, an operator's may."""
    await bus.api(
        "STREAM.CREATE.KV_marking",
        {
            "name": "KV_marking",
            "subjects": ["$KV.marking.>"],
            "storage": "file",
            "max_msgs_per_subject": 1,
            "allow_msg_ttl": True,
            "allow_rollup_hdrs": True,
            "subject_delete_marker_ttl": 60_000_000_000,
        },
    )
    return Bucket(bus, "marking")


async def test_a_key_that_was_never_set_has_no_value_and_revision_zero(leases: Bucket) -> None:
    assert await leases.get("router") == (None, 0)


async def test_what_is_put_is_read_back_with_its_revision(leases: Bucket) -> None:
    revision = await leases.put("router", b"me")
    assert await leases.get("router") == (b"me", revision)
    later = await leases.put("router", b"")
    assert later > revision
    assert await leases.get("router") == (b"", later)  # an empty value is a value


async def test_of_two_who_compare_and_set_one_wins_and_the_other_is_told(leases: Bucket) -> None:
    ends = await asyncio.gather(
        *(leases.put("router", name, expected=0) for name in (b"a", b"b")), return_exceptions=True
    )
    assert sorted(type(end) for end in ends if isinstance(end, Exception)) == [Conflict]
    value, revision = await leases.get("router")
    assert value in (b"a", b"b")
    with pytest.raises(Conflict):
        await leases.put("router", b"c", expected=revision + 1)
    assert await leases.put("router", b"c", expected=revision) > revision


async def test_a_revision_is_the_keys_own_whatever_happens_to_other_keys(leases: Bucket) -> None:
    mine = await leases.put("router", b"1")
    await leases.put("other", b"x")
    assert await leases.put("router", b"2", expected=mine) > mine


async def test_a_value_with_a_life_time_ends_and_can_be_created_anew(leases: Bucket) -> None:
    first = await leases.put("router", b"old", expected=0, ttl_s=3)  # not over before the next line, whatever else runs
    with pytest.raises(Conflict):
        await leases.put("router", b"new", expected=0)
    await eventually(lambda: gone(leases, "router"), every=0.05)
    assert await leases.get("router") == (None, 0)
    assert await leases.put("router", b"new", expected=0, ttl_s=1) > first


async def gone(bucket: Bucket, key: str) -> bool:
    value, _ = await bucket.get(key)
    return value is None


async def test_a_life_time_below_a_second_is_rounded_up_to_what_the_server_takes(bus: Bus, leases: Bucket) -> None:
    revision = await leases.put("router", b"short", ttl_s=0)
    assert revision == 1
    await eventually(lambda: gone(leases, "router"), every=0.05)


async def test_a_renewed_value_lives_on_and_keeps_its_new_life_time(leases: Bucket) -> None:
    revision = await leases.put("router", b"1", ttl_s=3)
    await leases.put("router", b"2", expected=revision, ttl_s=600)
    await leases.put("watch", b"x", ttl_s=3)
    await eventually(lambda: gone(leases, "watch"), every=0.05)
    assert (await leases.get("router"))[0] == b"2"


async def test_a_deleted_key_has_no_value_and_the_revision_to_create_it_with(leases: Bucket) -> None:
    await leases.put("router", b"1")
    await leases.delete("router")
    value, revision = await leases.get("router")
    assert value is None
    assert revision > 0
    with pytest.raises(Conflict):
        await leases.put("router", b"2", expected=0)
    assert await leases.put("router", b"2", expected=revision) == revision + 1


async def test_an_expiry_marker_of_the_server_is_no_value_and_can_be_replaced(marking: Bucket) -> None:
    """Pitfall P4: nats-py's `get` gives an entry without value here, and its `create` fails until the marker is gone."""
    put = await marking.put("k", b"v", ttl_s=1)
    await eventually(lambda: gone(marking, "k"), every=0.05)
    value, revision = await marking.get("k")
    assert value is None
    assert revision > put
    assert await marking.put("k", b"again", expected=revision) > revision
    assert (await marking.get("k"))[0] == b"again"


@pytest.mark.parametrize("headers", [{KV_OPERATION: "DEL"}, {KV_OPERATION: "PURGE"}, {MARKER_REASON: "MaxAge"}])
def test_delete_purge_and_expiry_markers_are_no_values(headers: dict[str, str]) -> None:
    assert value_of(Stored("$KV.b.k", 1, 0, headers, b"")) is None
    assert value_of(Stored("$KV.b.k", 1, 0, {"Nats-TTL": "60"}, b"v")) == b"v"


async def test_a_key_may_have_dots_and_is_found_again_in_its_subject(bus: Bus) -> None:
    models = Bucket(bus, MODELS)
    await models.put("alias.fast", b"llama")
    assert models.key_of("$KV.models.alias.fast") == "alias.fast"
    assert (await bus.last("KV_models", "$KV.models.alias.*")) is not None
    assert models.key_of("$KV.models.$KV.models.x") == "$KV.models.x"


async def test_a_bucket_that_does_not_exist_is_an_error_not_an_absent_key(bus: Bus) -> None:
    with pytest.raises(Refused):
        await Bucket(bus, "nowhere").get("k")
    with pytest.raises(NoResponders):
        await Bucket(bus, "nowhere").put("k", b"")
