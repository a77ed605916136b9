"""Open reservations and their jobs' folders, in memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from libs.common.bus.failures import Away
from libs.common.contracts.clients import Limits
from libs.common.contracts.codec import encode
from libs.common.contracts.jobs import Binding, Hint
from libs.common.contracts.subjects import JobKey
from libs.common.folder import facts_of
from libs.common.states import JobState
from services.gateway.limits import budgets, limiter, metrics, settling
from services.gateway.limits.budgets import Ask
from services.gateway.limits.keeper import Keeper
from services.gateway.limits.ledger import read
from services.gateway.limits.limiter import Limiter
from services.gateway.limits.rolling import Instant
from services.gateway.limits.settling import Finding, Settling, judge
from tests.gateway.limits.folders import KEY, Folders, submission
from tests.gateway.limits.worlds import ACCOUNT, Memory, Skewed, Time
from tests.support.waiting import eventually

LIMITS = Limits(tokens_per_day=1000, queued=5)


class Place:
    def __init__(self) -> None:
        self.time = Time()
        self.bucket = Memory()
        self.folders = Folders()
        self.settling = Settling(self.folders)  # type: ignore[arg-type]
        self.keeper = Keeper(
            self.bucket, Skewed(self.time, 0, 0), ACCOUNT, KEY, "gw", monotonic=self.time.monotonic
        )  # fmt: skip
        self.keeper.limits = LIMITS

    @property
    def now(self) -> Instant:
        return Instant(self.time.ms, self.time.ms)

    @property
    def open(self) -> dict[str, budgets.Open]:
        return read(self.bucket.value).tokens.open

    async def reserve(self, op: str, *, lives_s: float = 7200) -> None:
        def change(draft: Any, now: Instant) -> tuple[Any, bool]:
            return budgets.reserve(draft.tokens, LIMITS, Ask(op, f"job_{op}", 0, 100, 0, lives_s)), True

        await self.settling.expect(self.keeper, JobKey(KEY, f"job_{op}"), op)
        assert await self.keeper.change(change) == 100

    async def hint(self, op: str, state: JobState) -> None:
        await self.folders.hint(f"job_{op}", encode(Hint(state=state, epoch=1, sequence=1)))


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(settling, "AT_MOST_EVERY_S", 0.0)
    made = Place()
    running = asyncio.create_task(made.settling.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def count(how: str) -> float:
    return float(metrics.settlements.labels(how)._value.get())


def test_a_record_of_somebody_else_s_life_of_the_same_id_is_not_ours() -> None:
    mine, other = submission("a"), submission("b")
    assert judge("a", None) == Finding("absent")
    assert judge("a", mine) == Finding()
    assert judge("a", other) == Finding("absent")
    bound = Binding(op_id="x", job=mine, submitted=1, created_ms=0, epoch=1, node="n")
    assert judge("a", bound) == Finding(started=True)
    assert judge("b", bound) == Finding("absent")
    folders = Folders()
    folders.finish("job_a", mine, 30)
    done = facts_of(*next((stored.subject, stored.headers) for stored in folders.records.values()))
    assert judge("a", done) == Finding("sweep", 30)
    assert judge("b", done) == Finding("sweep", 0), "it is paid by whom it belongs to"
    waiting = Binding(op_id="x", job=mine, submitted=1, created_ms=0, epoch=1)
    assert judge("a", waiting) == Finding()


async def test_a_hint_has_the_folder_looked_at(place: Place) -> None:
    await place.reserve("a")
    facts = place.folders.submit("job_a", "a")
    place.folders.bind("job_a", facts)
    await place.hint("a", JobState.BOUND)
    await eventually(lambda: not place.open["a"].waits)
    await place.hint("a", JobState.SUCCEEDED)  # it is not true yet: nothing happens
    await place.hint("a", JobState.QUEUED)
    place.folders.finish("job_a", facts, 30)
    before = count("hint")
    await place.hint("a", JobState.SUCCEEDED)
    await eventually(lambda: not place.open)
    assert read(place.bucket.value).tokens.day == 30
    assert count("hint") == before + 1
    await place.hint("a", JobState.SUCCEEDED)


async def test_hints_that_are_none_or_about_others_cost_nothing(place: Place) -> None:
    await place.reserve("a")
    await place.folders.hint("job_a", b"not JSON")
    await place.hint("other", JobState.SUCCEEDED)
    assert place.settling._ended.empty()


async def test_a_ledger_that_cannot_be_read_ends_nothing(place: Place) -> None:
    await place.reserve("a")
    place.folders.bind("job_a", place.folders.submit("job_a", "a"))
    bucket, good = place.bucket, place.bucket.value
    bucket.value, bucket.revision, before = b"{", bucket.revision + 1, bucket.reads
    await place.hint("a", JobState.BOUND)
    await eventually(lambda: bucket.reads > before)
    bucket.value, bucket.revision = good, bucket.revision + 1
    await place.hint("a", JobState.BOUND)
    await eventually(lambda: not place.open["a"].waits)


async def test_when_the_folder_cannot_be_read_the_sweep_does_it_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.reserve("a")
    facts = place.folders.submit("job_a", "a")
    place.folders.finish("job_a", facts, 30)
    tried = []

    async def away(*_: Any) -> None:
        tried.append(1)
        raise Away("not connected")

    with monkeypatch.context() as patch:
        patch.setattr(place.folders, "last", away)
        await place.hint("a", JobState.SUCCEEDED)
        await eventually(lambda: tried)
    assert place.open
    assert await place.settling.sweep(place.keeper, place.now)
    assert not place.open


async def test_jobs_of_which_no_record_can_be_left_cost_what_was_reserved(place: Place) -> None:
    await place.reserve("a", lives_s=600)
    place.folders.submit("job_a", "a")
    place.time.ms += 539_000
    await place.settling.sweep(place.keeper, place.now)
    assert place.open
    place.folders.records.clear()
    place.time.ms += 121_000
    before = count("unknown")
    await place.settling.sweep(place.keeper, place.now)
    assert not place.open
    assert read(place.bucket.value).tokens.day == 100
    assert count("unknown") == before + 1


async def test_a_job_that_was_seen_in_its_folder_is_not_asked_after_again_until_something_happens(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.reserve("a")
    facts = place.folders.submit("job_a", "a")
    place.folders.write("job_a", "active", None)  # emptied: it says nothing
    place.folders.write("job_a", "new", facts)
    place.time.ms += 180_000
    await place.settling.sweep(place.keeper, place.now)

    async def asked(*_: Any) -> None:
        raise AssertionError("the leader was asked")

    with monkeypatch.context() as patch:
        patch.setattr(place.folders, "last", asked)
        await place.settling.sweep(place.keeper, place.now)
    place.folders.finish("job_a", facts, 5)
    place.folders.bind("job_a", facts)  # read in whichever order
    await place.settling.sweep(place.keeper, place.now)
    assert not place.open


async def test_an_account_is_swept_once_a_second_at_most(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "AT_MOST_EVERY_S", 3600.0)
    assert await place.settling.sweep(place.keeper, place.now)
    assert not await place.settling.sweep(place.keeper, place.now)
    place.settling.forget(place.keeper)
    assert await place.settling.sweep(place.keeper, place.now)


async def test_many_open_jobs_are_asked_about_in_portions(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "limits_of", lambda limits: [])
    monkeypatch.setattr(settling, "TOGETHER", 4)
    monkeypatch.setattr("tests.gateway.limits.test_settling.LIMITS", Limits(tokens_per_day=1))
    for number in range(10):
        await place.reserve(f"op{number}")
        place.folders.finish(f"job_op{number}", place.folders.submit(f"job_op{number}", f"op{number}"), 1)
    await place.settling.sweep(place.keeper, place.now)
    assert (place.open, read(place.bucket.value).tokens.day) == ({}, 10)


async def test_nobody_listens_for_a_client_of_which_nothing_is_open(place: Place) -> None:
    await place.reserve("a")
    await place.reserve("b")
    assert len(place.folders.hints) == 1, "one subscription for each client"
    facts = place.folders.submit("job_a", "a")
    place.folders.finish("job_a", facts, 5)
    await place.settling.sweep(place.keeper, place.now)
    await place.settling.tidy([place.keeper])
    assert len(place.folders.hints) == 1
    await place.settling.absent(place.keeper, "b")
    await place.settling.tidy([place.keeper])
    assert place.folders.hints == []


async def test_upkeep_goes_on_whatever_fails_and_forgets_who_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "LOOK_S", 0.005)
    monkeypatch.setattr(limiter, "pause", lambda: 0.005)
    monkeypatch.setattr(settling, "AT_MOST_EVERY_S", 0.0)
    place = Place()
    made = Limiter(place.folders, lambda client, route, key: JobKey(client, key))  # type: ignore[arg-type]
    monkeypatch.setattr(made, "_clock", Skewed(place.time, 0, 0))
    monkeypatch.setattr(made._clock, "estimate", lambda: place.now, raising=False)
    made._keepers[ACCOUNT] = place.keeper
    await place.reserve("a")
    fails = [3]

    def once_more(work: Callable[..., Any]) -> Callable[..., Any]:
        async def attempt(*args: Any, **more: Any) -> Any:
            if fails[0]:
                fails[0] -= 1
                raise Away("not connected")
            return await work(*args, **more)

        return attempt

    monkeypatch.setattr(place.keeper, "say_streams", once_more(place.keeper.say_streams))
    monkeypatch.setattr(place.keeper, "refresh", once_more(place.keeper.refresh))
    running = asyncio.create_task(made.run())
    try:
        await eventually(lambda: metrics.reservations_open._value.get() == 1)
        place.folders.finish("job_a", place.folders.submit("job_a", "a"), 5)
        await eventually(lambda: not place.open)
        assert fails == [0]
        await eventually(lambda: metrics.reservations_open._value.get() == 0)
        assert made._keepers
        monkeypatch.setattr(limiter, "FORGET_S", 0.0)
        place.keeper.used_at = time.monotonic() - 1
        await eventually(lambda: not made._keepers)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
