"""The follower over a real server: order, gaps, restarts, and streams made anew."""

import asyncio

from libs.common.bus.connection import Bus
from libs.common.bus.follower import Follower, Followers, parse_ack
from libs.common.bus.stored import Stored
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually


class Seen:
    def __init__(self) -> None:
        self.records: list[Stored] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1
        self.records.clear()
        self.when_reset()

    def when_reset(self) -> None:
        pass

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
    await asyncio.wait_for(follower.caught_up.wait(), 20)
    assert seen.bodies == [b"0", b"1", b"2"]
    for n in range(3, 600):
        await put(bus, n)
    await eventually(lambda: len(seen.records) == 600)
    assert [s.sequence for s in seen.records] == list(range(1, 601))
    assert follower.fresh
    task.cancel()


async def test_who_waits_for_a_record_is_told_when_it_has_come_or_that_it_has_not(bus: Bus) -> None:
    seen = Seen()
    follower, task = follow(bus, seen)
    assert await follower.reached(0, within=0), "there is nothing before the first"
    assert not await follower.reached(1, within=0.05)
    waiting = [asyncio.create_task(follower.reached(n, within=20)) for n in (1, 3, 2)]
    for n in range(2):
        await put(bus, n)
    assert await waiting[0]
    assert await waiting[2]
    assert seen.bodies == [b"0", b"1"]
    assert not waiting[1].done()
    waiting[1].cancel()
    await asyncio.gather(waiting[1], return_exceptions=True)
    await put(bus, 2)
    assert await follower.reached(3, within=20)
    assert await follower.reached(2, within=0)
    task.cancel()


async def test_an_empty_stream_counts_as_caught_up(bus: Bus) -> None:
    follower, task = follow(bus, Seen())
    await asyncio.wait_for(follower.caught_up.wait(), 20)
    task.cancel()


async def test_it_goes_on_without_gap_or_repeat_after_the_server_was_killed(bus: Bus, nats: NatsServer) -> None:
    seen = Seen()
    follower, task = follow(bus, seen)
    await put(bus, 0)
    await eventually(lambda: len(seen.records) == 1)
    await nats.kill()
    await eventually(lambda: not bus.connected)
    await nats.start()
    await eventually(lambda: bus.connected)
    await put(bus, 1)
    await eventually(lambda: len(seen.records) == 2)
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
    await eventually(lambda: seen.bodies == [b"100"])
    assert seen.resets == 2
    task.cancel()


async def test_a_lost_delivery_is_fetched_again(bus: Bus) -> None:
    """Pitfall P3: what the client drops at its limit must not stay missing. Dropping is played by skipping a delivery."""
    seen = Seen()
    follower, task = follow(bus, seen)
    await asyncio.wait_for(follower.caught_up.wait(), 20)
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
    await eventually(lambda: len(seen.records) == 4)
    assert seen.bodies == [b"0", b"1", b"2", b"3"]
    assert dropped
    task.cancel()


def follow_all(bus: Bus, seen: Seen, *, from_sequence: int = 1) -> tuple[Followers, list[asyncio.Task[None]]]:
    """k0, then k1, and k2 after both."""
    followers = Followers(seen.reset)
    followers.add("k0", bus, "KV_models", "$KV.models.k0", seen.records.append)
    followers.add("k1", bus, "KV_models", "$KV.models.k1", seen.records.append, from_sequence=from_sequence)
    followers.add("k2", bus, "KV_models", "$KV.models.k2", seen.records.append, after=("k0", "k1"))
    return followers, [asyncio.create_task(task) for task in followers.tasks().values()]


async def test_several_followers_feed_one_view_and_forget_once_at_their_start(bus: Bus) -> None:
    for n in (2, 1, 0):
        await put(bus, n)
    seen = Seen()
    followers, tasks = follow_all(bus, seen)
    assert not followers.caught_up
    await asyncio.wait_for(followers.wait_caught_up(), 20)
    assert followers.caught_up
    assert sorted(seen.bodies) == [b"0", b"1", b"2"]
    assert seen.bodies[-1] == b"2"  # the one that comes after the others, although it was stored before
    assert (seen.resets, followers.resets) == (1, 1)
    assert all(problem() is None for problem in followers.problems().values())
    for task in tasks:
        task.cancel()


async def test_one_of_several_begins_where_it_was_told(bus: Bus) -> None:
    for n in (0, 1, 2):
        await put(bus, n)
    seen = Seen()
    followers, tasks = follow_all(bus, seen, from_sequence=3)
    await asyncio.wait_for(followers.wait_caught_up(), 20)
    await put(bus, 0)
    await eventually(lambda: len(seen.records) == 3)
    assert sorted(seen.bodies) == [b"0", b"0", b"2"]
    for task in tasks:
        task.cancel()


async def test_when_one_of_several_must_forget_all_start_over(bus: Bus) -> None:
    """The stream was made anew, and only one has noticed: what the others know and still hear is of the old one."""
    seen = Seen()
    followers, tasks = follow_all(bus, seen, from_sequence=3)
    for n in (0, 1, 2):
        await put(bus, n)
    await asyncio.wait_for(followers.wait_caught_up(), 20)
    await eventually(lambda: len(seen.records) >= 2)
    config = {k: v for k, v in (await bus.api("STREAM.INFO.KV_models"))["config"].items() if k != "metadata"}
    await bus.api("STREAM.DELETE.KV_models")
    await bus.api("STREAM.CREATE.KV_models", config)
    for n in (1, 0, 2):  # k1 from its start as well: nothing before is of use
        await put(bus, n)
    await eventually(lambda: seen.resets >= 2 and len(seen.records) == 3)
    await eventually(lambda: followers.caught_up)
    assert sorted(seen.bodies) == [b"0", b"1", b"2"]
    for task in tasks:
        task.cancel()


async def test_what_one_of_several_hears_after_all_was_forgotten_counts_only_from_its_new_start(bus: Bus) -> None:
    for n in (0, 1, 2):
        await put(bus, n)
    seen = Seen()
    followers, tasks = follow_all(bus, seen)
    await asyncio.wait_for(followers.wait_caught_up(), 20)
    caught_up: list[bool] = []
    seen.when_reset = lambda: caught_up.append(followers.caught_up)  # type: ignore[method-assign]
    first = followers._members["k0"]
    first._life = "another"
    first._doubt()
    await eventually(lambda: seen.resets == 2)
    assert caught_up == [False]
    await asyncio.wait_for(followers.wait_caught_up(), 20)
    assert sorted(seen.bodies) == [b"0", b"1", b"2"]
    assert [member.resets for member in followers._members.values()] == [2, 2, 2]
    assert seen.resets == 2
    for task in tasks:
        task.cancel()


def test_ack_subjects_of_both_versions_are_read() -> None:
    v1 = "$JS.ACK.JOBS.cons.1.42.7.1700000000000000000.3"
    v2 = "$JS.ACK.hub.ACCHASH.JOBS.cons.1.42.7.1700000000000000000.3.rnd"
    assert parse_ack(v1) == parse_ack(v2) == (7, 42, 1700000000000, 3)
