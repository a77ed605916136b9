"""The follower over a real server: order, gaps, restarts, and streams made anew."""

import asyncio

from libs.common.bus.connection import Bus, Stored
from libs.common.bus.follower import Follower, parse_ack
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually


class Seen:
    def __init__(self) -> None:
        self.records: list[Stored] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1
        self.records.clear()

    @property
    def bodies(self) -> list[bytes]:
        return [stored.data for stored in self.records]


def follow(
    bus: Bus, seen: Seen, stream: str = "KV_models", subject: str = "$KV.models.>"
) -> tuple[Follower, asyncio.Task[None]]:
    follower = Follower(bus, stream, [subject], seen.records.append, on_reset=seen.reset)
    return follower, asyncio.create_task(follower.run())


async def put(bus: Bus, key: int) -> None:
    await bus.append(f"$KV.models.k{key}", str(key).encode())


async def test_it_delivers_what_was_stored_and_what_comes_later_in_order(bus: Bus) -> None:
    for n in range(3):
        await put(bus, n)
    seen = Seen()
    follower, task = follow(bus, seen)
    await asyncio.wait_for(follower.caught_up.wait(), 5)
    assert seen.bodies == [b"0", b"1", b"2"]
    for n in range(3, 600):
        await put(bus, n)
    await eventually(lambda: len(seen.records) == 600)
    assert [s.sequence for s in seen.records] == list(range(1, 601))
    assert follower.fresh
    task.cancel()


async def test_an_empty_stream_counts_as_caught_up(bus: Bus) -> None:
    follower, task = follow(bus, Seen())
    await asyncio.wait_for(follower.caught_up.wait(), 5)
    task.cancel()


async def test_it_goes_on_without_gap_or_repeat_after_the_server_was_killed(bus: Bus, nats: NatsServer) -> None:
    seen = Seen()
    follower, task = follow(bus, seen)
    await put(bus, 0)
    await eventually(lambda: len(seen.records) == 1)
    await nats.kill()
    await eventually(lambda: not bus.connected)
    await nats.start()
    await eventually(lambda: bus.connected, within=10)
    await put(bus, 1)
    await eventually(lambda: len(seen.records) == 2, within=10)
    assert (seen.bodies, seen.resets) == ([b"0", b"1"], 1)
    task.cancel()


async def test_a_stream_made_anew_is_noticed_and_read_from_its_start(bus: Bus) -> None:
    """Pitfall P5: an ordered consumer would wait for sequences beyond its old position, and miss everything before."""
    seen = Seen()
    follower, task = follow(bus, seen)
    for n in range(5):
        await put(bus, n)
    await eventually(lambda: len(seen.records) == 5)
    config = (await bus.api("STREAM.INFO.KV_models"))["config"]
    await bus.api("STREAM.DELETE.KV_models")
    config = {k: v for k, v in config.items() if k not in ("metadata",)}
    await bus.api("STREAM.CREATE.KV_models", config)
    await put(bus, 100)
    await eventually(lambda: seen.bodies == [b"100"], within=10)
    assert seen.resets == 2
    task.cancel()


async def test_a_lost_delivery_is_fetched_again(bus: Bus) -> None:
    """Pitfall P3: what the client drops at its limit must not stay missing. Dropping is played by skipping a delivery."""
    seen = Seen()
    follower, task = follow(bus, seen)
    await asyncio.wait_for(follower.caught_up.wait(), 5)
    original, dropped = follower._receive, []

    async def lossy(message):  # type: ignore[no-untyped-def]
        if message.data == b"1" and not dropped:
            dropped.append(message)
            return
        await original(message)

    follower._receive = lossy  # type: ignore[method-assign]
    follower._doubt()
    for n in range(4):
        await put(bus, n)
    await eventually(lambda: len(seen.records) == 4, within=10)
    assert seen.bodies == [b"0", b"1", b"2", b"3"]
    assert dropped
    task.cancel()


def test_ack_subjects_of_both_versions_are_read() -> None:
    v1 = "$JS.ACK.JOBS.cons.1.42.7.1700000000000000000.3"
    v2 = "$JS.ACK.hub.ACCHASH.JOBS.cons.1.42.7.1700000000000000000.3.rnd"
    assert parse_ack(v1) == parse_ack(v2) == (7, 42, 1700000000000, 3)
