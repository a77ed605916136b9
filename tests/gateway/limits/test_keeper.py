"""One gateway at a ledger: what is asked of NATS, and what happens when the answers are slow or do not come."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from libs.common.bus.failures import Away, Conflict, NoResponders
from libs.common.contracts.clients import Limits
from services.gateway.limits import keeper as module
from services.gateway.limits.clock import FRESH_S, ServerClock
from services.gateway.limits.keeper import Keeper
from services.gateway.limits.ledger import read
from services.gateway.limits.rolling import Instant, Wait
from tests.gateway.limits.worlds import World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in ("CONFLICT_S", "AGAIN_S", "TURN_S"):
        monkeypatch.setattr(module, name, 0.0)
    made = World(Limits(requests_per_minute=2400, open_streams=2))
    yield made
    made.close()


def test_a_lease_is_spent_without_nats_and_a_second_costs_no_read(world: World) -> None:
    keeper = world.start()
    for _ in range(10):
        assert world.take(keeper) == [None]
    assert (world.bucket.reads, world.bucket.writes) == (1, 1)
    world.take(keeper)
    assert (world.bucket.reads, world.bucket.writes) == (1, 2)
    assert keeper.left == 9
    world.time.ms += 1000
    assert keeper.left == 0, "unused permits expire"
    world.take(keeper)
    assert sum(spent.permits for spent in read(world.bucket.value).requests.spent) == 11


def test_requests_that_come_together_share_one_commit(world: World) -> None:
    keeper = world.start()
    assert world.take(keeper, together=300) == [None] * 300
    assert world.bucket.writes == 1


def test_a_refusal_is_looked_up_once_a_second_and_at_once_when_the_limit_changes(world: World) -> None:
    world.limits = Limits(requests_per_minute=1)
    keeper = world.start()
    assert world.take(keeper) == [None]
    (refused,) = world.take(keeper)
    assert isinstance(refused, Wait)
    reads = world.bucket.reads
    for _ in range(5):
        assert world.take(keeper) == [refused]
    assert world.bucket.reads == reads
    world.time.ms += 1001
    assert world.take(keeper) == [refused]
    assert world.bucket.reads == reads + 1
    world.limits = Limits(requests_per_minute=2)
    assert world.take(keeper) == [None]


def test_who_is_refused_is_told_so_also_beside_unspent_permits_of_a_lease_that_is_over(world: World) -> None:
    keeper = world.start()
    world.take(keeper)
    world.time.ms += 1500
    world.limits = Limits(requests_per_minute=1)
    assert world.take(keeper) != [None]


def test_a_refusal_stands_on_what_the_leader_says_not_on_what_is_remembered(world: World) -> None:
    world.limits = Limits(open_streams=1)
    one, other = world.start(), world.start()
    assert world.do(one.open_stream(world.limits)) is None
    assert world.do(other.open_stream(world.limits)) == Wait(0)
    one.close_stream()
    world.do(one.say_streams())
    assert world.do(other.open_stream(world.limits)) is None


def test_an_ack_that_comes_when_the_lease_is_over_lets_nobody_in_on_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, put = world.start(), world.bucket.put
    slow = [1500, 900]

    async def late(*args: Any, **more: Any) -> int:
        revision = await put(*args, **more)
        world.time.ms += slow.pop(0) if slow else 0
        return revision

    monkeypatch.setattr(world.bucket, "put", late)
    assert world.take(keeper, together=2) == [None, None]
    assert world.bucket.writes == 2, "the first lease was over when its ack came"
    world.time.ms += 1000
    world.take(keeper)
    assert sum(spent.permits for spent in read(world.bucket.value).requests.spent) == 2


def test_whoever_went_away_while_waiting_takes_no_permit(world: World) -> None:
    keeper = world.start()

    async def leave() -> None:
        leaving = asyncio.ensure_future(keeper.take(world.limits))
        staying = asyncio.ensure_future(keeper.take(world.limits))
        change = asyncio.ensure_future(keeper.change(lambda draft, now: (None, True)))
        await asyncio.sleep(0)
        leaving.cancel()
        change.cancel()
        assert await staying is None

    world.do(leave())
    assert keeper.left == 9


@pytest.mark.parametrize("failure", [Away("not connected"), NoResponders("no leader")])
def test_what_nobody_answers_is_tried_for_a_while_and_then_told_to_all_who_wait(
    world: World, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    keeper = world.start()

    async def gone(key: str) -> tuple[bytes | None, int]:
        world.time.ms += 500
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(world.bucket, "get", gone)

        async def both() -> list[Any]:
            return await asyncio.gather(*(keeper.take(world.limits) for _ in range(2)), return_exceptions=True)

        assert world.do(both()) == [failure, failure]
    assert world.take(keeper) == [None], "and is forgotten when it is over"


def test_a_ledger_that_never_stands_still_is_no_permit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = world.start()

    async def beaten(*_: Any, **__: Any) -> int:
        world.time.ms += 100
        raise Conflict("somebody was faster")

    monkeypatch.setattr(world.bucket, "put", beaten)
    with pytest.raises(Away, match="keep changing"):
        world.take(keeper)


def test_slots_are_given_back_and_the_word_about_them_is_kept_fresh(world: World) -> None:
    keeper = world.start()
    for _ in range(2):
        assert world.do(keeper.open_stream(world.limits)) is None
    assert world.do(keeper.open_stream(world.limits)) == Wait(0)
    world.do(keeper.say_streams())
    writes = world.bucket.writes
    world.time.ms += 10_000
    world.do(keeper.say_streams())
    assert world.bucket.writes == writes + 1
    keeper.close_stream()
    assert world.do(keeper.open_stream(world.limits)) is None, "the slot is still this gateway's"
    assert world.bucket.writes == writes + 1
    keeper.close_stream()
    keeper.close_stream()
    assert not keeper.is_idle
    world.do(keeper.say_streams())
    assert read(world.bucket.value).streams == {}
    assert keeper.is_idle


def test_a_slot_that_is_being_given_back_is_not_used_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, put = world.start(), world.bucket.put
    opening: list[asyncio.Future[Any]] = []

    async def meanwhile(*args: Any, **more: Any) -> int:
        if not opening:
            opening.append(asyncio.ensure_future(keeper.open_stream(world.limits)))
            await asyncio.sleep(0)
        return await put(*args, **more)

    async def give_back() -> None:
        await keeper.say_streams()
        await opening[0]

    for _ in range(2):
        world.do(keeper.open_stream(world.limits))
    keeper.close_stream()
    monkeypatch.setattr(world.bucket, "put", meanwhile)
    world.do(give_back())
    (held,) = read(world.bucket.value).streams.values()
    assert held.streams == keeper.streams == 2


def test_a_slot_that_was_stored_without_an_ack_is_not_counted_twice_for_long(world: World) -> None:
    keeper = world.start()
    world.bucket.lose = "the ack"
    assert world.do(keeper.open_stream(world.limits)) is None
    world.do(keeper.say_streams())
    (held,) = read(world.bucket.value).streams.values()
    assert held.streams == 1


class Server:
    """As much of a bus as the clock asks for."""

    connections = 1

    def __init__(self, told: list[str]) -> None:
        self.told = told
        self.asked = 0

    async def api(self, subject: str) -> dict[str, Any]:
        assert subject == "STREAM.INFO.KV_limits"
        self.asked += 1
        return {"ts": self.told.pop(0)}


async def test_the_clock_is_the_server_s_and_knows_what_it_does_not_know() -> None:
    ticks = iter([100.0, 100.0, 100.25, 100.25, 101.0, 101.0])
    server = Server(["2026-11-23T12:00:00.5Z"])
    clock = ServerClock(server, monotonic=lambda: next(ticks))  # type: ignore[arg-type]
    assert clock.estimate() == Instant(0, 0)
    told = 1_795_435_200_500
    assert await clock.now() == Instant(told, told + 252), "it was said between the question and the answer"
    assert await clock.now() == Instant(told + 750, told + 1002)
    assert server.asked == 1


async def test_a_server_s_clock_that_was_set_anew_is_noticed() -> None:
    now = [0.0]
    server = Server(["2026-11-23T12:00:00Z", "2026-11-23T11:59:00Z", "2026-11-23T12:30:00Z"])
    clock = ServerClock(server, monotonic=lambda: now[0])  # type: ignore[arg-type]
    first = await clock.now()
    now[0] = FRESH_S + 0.1
    assert (await clock.now()).earliest < first.earliest
    server.connections = 2  # another server, perhaps
    assert (await clock.now()).earliest > first.earliest


def test_a_keeper_forgets_nothing_that_is_open(world: World) -> None:
    keeper: Keeper = world.start()
    assert keeper.is_idle
    world.take(keeper)
    assert not keeper.is_idle
    world.time.ms += 1000
    assert keeper.is_idle
