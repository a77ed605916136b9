"""Streams and buckets: made by `create_missing`, compared by `drift`, otherwise left alone."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.provision import create_missing, drift
from libs.common.contracts.streams import GIB, MIB, STREAMS, differences
from tests.support.nats_server import NatsServer, connected, nats_server

NAMES = [stream.name for stream in STREAMS]


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[Bus]:
    config = "jetstream { max_file_store: 20TiB }\n"  # whatever this machine has
    async with nats_server(tmp_path / "bare", provision=False, config=config) as server, connected(server) as bus:
        yield bus


async def configs(bus: Bus) -> dict[str, Any]:
    return {name: (await bus.api(f"STREAM.INFO.{name}"))["config"] for name in NAMES}


async def test_what_is_missing_is_created_and_a_second_time_nothing(empty: Bus) -> None:
    assert await create_missing(empty) == NAMES
    before = await configs(empty)
    assert await drift(empty) == []
    assert await create_missing(empty, free_disk=1 * GIB, replicas=1) == []
    assert await configs(empty) == before
    await empty.api("STREAM.DELETE.KV_models")
    assert await create_missing(empty) == ["KV_models"]


@pytest.mark.parametrize(
    ("free_disk", "jobs", "models"),
    [
        (200 * MIB, 50 * MIB, 50 * MIB // 8),
        (10_000 * GIB, 50 * GIB, 64 * MIB),
        (None, 4 * GIB, 64 * MIB),
    ],
)
async def test_sizes_follow_the_free_disk_up_to_their_limits(
    empty: Bus, free_disk: int | None, jobs: int, models: int
) -> None:
    await create_missing(empty, free_disk=free_disk)
    found = await configs(empty)
    assert (found["JOBS"]["max_bytes"], found["KV_models"]["max_bytes"]) == (jobs, models)
    assert all(config["max_bytes"] > 0 for config in found.values())


@pytest.mark.parametrize("megabytes", [200, 100])
async def test_on_a_small_disk_everything_is_created_and_fits(tmp_path: Path, megabytes: int) -> None:
    """The server reserves what streams may hold; what it cannot reserve it refuses to create."""
    config = f"jetstream {{ max_file_store: {megabytes}MiB }}\n"
    async with (
        nats_server(tmp_path / "small", provision=False, config=config) as server,
        connected(server) as bus,
    ):
        assert await create_missing(bus, free_disk=megabytes * MIB) == NAMES
        assert await drift(bus) == []
        assert sum(found["max_bytes"] for found in (await configs(bus)).values()) < megabytes * MIB


async def test_on_a_full_disk_no_stream_is_made_without_a_limit(empty: Bus) -> None:
    """0 would mean "without limit" to the server."""
    await create_missing(empty, free_disk=0)
    assert await drift(empty) == []
    assert all(config["max_bytes"] > 0 for config in (await configs(empty)).values())


async def test_replicas_that_the_servers_cannot_give_are_refused_and_nothing_is_half_made(empty: Bus) -> None:
    with pytest.raises(BusError, match="replicas"):
        await create_missing(empty, replicas=3)
    assert (await empty.api("STREAM.NAMES"))["total"] == 0
    assert all(stream.config(replicas=3, max_bytes=1)["num_replicas"] == 3 for stream in STREAMS)


async def test_a_missing_stream_is_named_with_the_command_that_helps(bus: Bus) -> None:
    await bus.api("STREAM.DELETE.KV_models")
    assert await drift(bus) == ["stream KV_models does not exist: run `arriero nats init`"]


# What an operator can change in a running stream, and what the difference is called.
CHANGED: list[tuple[str, str, Any]] = [
    ("JOBS", "subjects", ["jobs.>"]),
    ("JOBS", "discard", "old"),
    ("JOBS", "max_age", 3600_000_000_000),
    ("JOBS", "max_bytes", -1),
    ("JOBS", "max_msg_size", 1000),
    ("JOBS", "max_msgs_per_subject", 5),
    ("JOBS", "duplicate_window", 1_000_000_000),
    ("JOBS", "allow_direct", False),
    ("KV_models", "allow_rollup_hdrs", False),
]
# What only a stream made otherwise can have.
MADE: list[tuple[str, str, Any]] = [
    ("OUT", "storage", "memory"),
    ("OUT", "retention", "interest"),
    ("OUT", "allow_msg_ttl", False),
    ("OUT", "deny_delete", True),
    ("OUT", "deny_purge", True),
]


@pytest.mark.parametrize(("stream", "field", "value"), CHANGED, ids=[field for _, field, _ in CHANGED])
async def test_a_changed_field_is_named_and_nothing_is_mended(bus: Bus, stream: str, field: str, value: Any) -> None:
    config = (await bus.api(f"STREAM.INFO.{stream}"))["config"]
    await bus.api(f"STREAM.UPDATE.{stream}", {**config, field: value})
    await named_and_untouched(bus, stream, field)


@pytest.mark.parametrize(("stream", "field", "value"), MADE, ids=[field for _, field, _ in MADE])
async def test_a_stream_made_otherwise_is_named_and_left_alone(bus: Bus, stream: str, field: str, value: Any) -> None:
    config = (await bus.api(f"STREAM.INFO.{stream}"))["config"]
    await bus.api(f"STREAM.DELETE.{stream}")
    config.pop("metadata", None)
    await bus.api(f"STREAM.CREATE.{stream}", {**config, field: value})
    await named_and_untouched(bus, stream, field)


async def named_and_untouched(bus: Bus, stream: str, field: str) -> None:
    before = await configs(bus)
    said = await drift(bus)
    assert [sentence for sentence in said if sentence.startswith(f"stream {stream}: {field} ")] == said
    assert len(said) == 1
    assert await create_missing(bus) == []
    assert await configs(bus) == before


def test_every_declared_field_is_compared() -> None:
    """The cases above name each field once; a field that is declared anew needs one, too."""
    declared = set(STREAMS[0].config(replicas=1, max_bytes=1)) - {"name", "description", "num_replicas"}
    assert {field for _, field, _ in CHANGED + MADE} == declared


def test_prose_and_the_number_of_replicas_are_no_drift() -> None:
    wanted = STREAMS[0].config(replicas=1, max_bytes=1)
    assert differences(wanted, {**wanted, "description": "mine", "num_replicas": 3, "max_bytes": 5}) == []


async def test_replication_is_learnt_from_the_server(nats: NatsServer, bus: Bus) -> None:
    bus.replicated = True
    await drift(bus)
    assert not bus.replicated
