"""Binding, asking, freeing: the router against a scripted worker, over a real server (DESIGN §3, Router)."""

import asyncio
import time

import pytest

from libs.common.bus.connection import Bus
from libs.common.bus.failures import Full, Unconfirmed
from libs.common.contracts import subjects
from libs.common.contracts.codec import encode
from libs.common.contracts.control import (
    Erase,
    PlaceQuery,
    RunAnswer,
    RunStatus,
    decode_erase_answer,
    decode_place_answer,
)
from libs.common.contracts.faults import Code
from libs.common.contracts.headers import FACTS
from libs.common.contracts.jobs import CancelMark, Completion
from libs.common.contracts.requests import Priority
from libs.common.contracts.streams import JOBS
from libs.common.contracts.subjects import JobKey
from libs.common.journal import Journal
from libs.common.states import JobState
from services.router import loop, oversight, tidier
from tests.router.building import (
    BUSY,
    FAULT,
    Routers,
    a_key,
    a_submission,
    binding_of,
    ended,
    folder,
    heard,
    silenced,
    submit,
)
from tests.support.fake_worker import FakeWorker, fake_worker
from tests.support.waiting import eventually


async def emptied(bus: Bus, key: JobKey) -> bool:
    """Is nothing left of the finished job but its `done`?"""
    records: tuple[subjects.Record, ...] = ("new", "active")
    standing = [await bus.last(JOBS, subjects.record(key, record)) for record in records]
    return all(stored is None or FACTS not in stored.headers for stored in standing)


async def runs_on(worker: FakeWorker, key: JobKey) -> tuple[JobKey, int]:
    found: tuple[JobKey, int] = await eventually(lambda: worker.run_of(key))
    return found


# -- binding ---------------------------------------------------------------------------------------------------------------


async def test_a_job_goes_to_the_node_that_holds_its_model_and_says_why(bus: Bus, routers: Routers) -> None:
    async with (
        fake_worker(bus, "cold", loaded=()),
        fake_worker(bus, "warm", finish_after=0),
        fake_worker(bus, "other", models=("x:1",), loaded=("x:1",)),
        routers.one(bus) as router,
    ):
        await heard(router, 3)
        done = await ended(bus, await submit(bus))
        assert done.node == "warm"
        assert done.decision
        assert done.decision.reason.startswith("model in memory")
        assert {c.node: c.verdict for c in done.decision.candidates}["other"] == "does not have the model"


async def test_jobs_wait_in_the_log_until_a_slot_is_free_and_a_node_never_gets_more_than_its_slots(
    bus: Bus, routers: Routers
) -> None:
    """Late binding: what Ollama's own queue holds can neither be reordered nor seen."""
    async with fake_worker(bus, slots=2, finish_after=0.02) as worker, routers.one(bus):
        keys = await asyncio.gather(*(submit(bus) for _ in range(15)))
        for key in keys:
            await ended(bus, key)
        assert worker.most <= 2
        assert sorted(key for key, _ in worker.executed) == sorted(keys)
        assert set(worker.executed.values()) == {1}


async def test_a_better_priority_is_served_first_then_the_older_job(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus) as worker, routers.one(bus) as router:
        first = await runs_on(worker, await submit(bus))
        wanted = {
            "batch": Priority.BATCH,
            "normal": Priority.NORMAL,
            "normal2": Priority.NORMAL,
            "chat": Priority.INTERACTIVE,
        }
        keys = {name: await submit(bus, priority=priority) for name, priority in wanted.items()}
        await eventually(lambda: len(router.queue) == 4)
        asked = encode(PlaceQuery(client=keys["batch"].client, job=keys["batch"].job))
        place = decode_place_answer(await bus.request(subjects.router("place"), asked))
        assert (place.position, place.reason) == (4, "all slots taken")
        served = []
        run = first
        for _ in range(4):
            await worker.finish(run)
            run = await eventually(lambda: next(iter(worker.running), None))
            served.append(run[0])
        assert served == [keys["chat"], keys["normal"], keys["normal2"], keys["batch"]]


async def test_a_slot_freed_by_the_workers_word_is_given_on_at_once(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus) as worker, routers.one(bus) as router:
        await silenced(router, worker)
        run = await runs_on(worker, await submit(bus))
        second = await submit(bus)
        await worker.finish(run)
        await eventually(lambda: worker.run_of(second), within=1)


async def test_when_the_free_message_is_lost_the_next_heartbeat_frees_the_slot(bus: Bus, routers: Routers) -> None:
    """A slot is free on the worker's word: `ctl.router.free`, or a heartbeat."""
    async with fake_worker(bus, loses_free=True) as worker, routers.one(bus):
        run = await runs_on(worker, await submit(bus))
        second = await submit(bus)
        await worker.finish(run)
        await runs_on(worker, second)


async def test_a_slot_does_not_leak_when_every_word_about_a_quick_run_was_lost(bus: Bus, routers: Routers) -> None:
    """DESIGN §7.4. The model's seeded bug `slot_leak`: neither the answer to `run` nor `free` came, and no heartbeat saw it."""
    async with fake_worker(bus, loses_free=True, deaf=1, finish_after=0) as worker, routers.one(bus) as router:
        await ended(bus, await submit(bus))
        await eventually(lambda: not router.fleet.nodes["n1"].runs)
        await ended(bus, await submit(bus))
        assert len(worker.executed) == 2


async def test_a_done_job_holds_its_slot_until_the_worker_lets_go(bus: Bus, routers: Routers) -> None:
    """Not on `done`: the node may still be busy with it."""
    async with fake_worker(bus) as worker, routers.one(bus) as router:
        await silenced(router, worker)
        key = await submit(bus)
        run = await runs_on(worker, key)
        await worker.beat()
        await eventually(lambda: run in router.fleet.nodes["n1"].listed)
        worker.let_go, let_go = _nothing, worker.let_go  # type: ignore[method-assign,assignment]
        await worker.finish(run)
        second = await submit(bus)
        await eventually(lambda: second in router.queue and key not in router.index.jobs)
        assert run in router.fleet.nodes["n1"].runs
        assert worker.run_of(second) is None
        await let_go(run, RunAnswer(status=RunStatus.FINISHED, changes=0))
        await runs_on(worker, second)


async def _nothing(*_: object) -> None:
    pass


# -- asking ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["deaf", "absent"])
async def test_an_unanswered_order_is_repeated_and_the_job_runs_once(bus: Bus, routers: Routers, lost: str) -> None:
    """Dispatch is a request: a time-out means ask again until an answer or a heartbeat decides."""
    async with fake_worker(bus, **{lost: 2}) as worker, routers.one(bus) as router:
        await silenced(router, worker)
        key = await submit(bus)
        await eventually(lambda: len(worker.asked) >= 3)
        run = await runs_on(worker, key)
        await worker.finish(run)
        await ended(bus, key)
        assert worker.executed == {run: 1}
        assert {order.epoch for order in worker.asked} == {run[1]}


async def test_a_refused_job_goes_elsewhere_and_no_attempt_is_counted(bus: Bus, routers: Routers) -> None:
    async with (
        fake_worker(bus, "a", refuses="no slot") as refusing,
        fake_worker(bus, "b", finish_after=0, loaded=()),
        routers.one(bus) as router,
    ):
        await heard(router, 2)
        key = await submit(bus)
        await eventually(lambda: refusing.asked)
        refusing.models = ()
        done = await ended(bus, key)
        assert (done.state, done.node, done.attempts) == (JobState.SUCCEEDED, "b", ())
        assert done.past
        assert all(past.base == 0 for past in done.past)


async def test_a_job_given_back_with_a_fault_fails_after_three_attempts_and_its_history_is_kept(
    bus: Bus, routers: Routers
) -> None:
    """Executing again always takes a new bind; only failures count."""
    async with fake_worker(bus, gives_back=FAULT) as worker, routers.one(bus):
        key = await submit(bus)
        done = await ended(bus, key)
        assert (done.state, done.fault) == (JobState.FAILED, FAULT)
        assert [(a.node, a.fault) for a in done.attempts] == [("n1", FAULT)] * 3
        epochs = [a.epoch for a in done.attempts]
        assert epochs == sorted(set(epochs)) == [past.epoch for past in done.past]
        assert worker.executed == {(key, epoch): 1 for epoch in epochs}
        at = [a.at_ms for a in done.attempts]
        assert at[1] - at[0] >= 50
        assert at[2] - at[1] >= 100


async def test_busy_is_not_broken_and_never_counts_as_an_attempt(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, gives_back=BUSY) as worker, routers.one(bus):
        key = await submit(bus)
        await eventually(lambda: len(worker.executed) >= 4)
        worker.gives_back, worker.finish_after = None, 0
        done = await ended(bus, key)
        assert (done.state, done.attempts) == (JobState.SUCCEEDED, ())


async def test_given_back_is_heard_in_the_answer_when_the_free_message_was_lost(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, gives_back=BUSY, loses_free=True) as worker, routers.one(bus):
        await submit(bus)
        await eventually(lambda: len(worker.executed) >= 2)


async def test_finished_but_still_bound_is_bound_again(bus: Bus, routers: Routers) -> None:
    """The model: with a deposed leader a worker believes that it was fenced; without this rule nobody ever moves."""
    async with fake_worker(bus) as worker, routers.one(bus):
        key = await submit(bus)
        run = await runs_on(worker, key)
        await worker.let_go(run, RunAnswer(status=RunStatus.FINISHED, changes=0))
        again = await eventually(lambda: worker.run_of(key))
        assert again[1] > run[1]
        await worker.finish(again)
        done = await ended(bus, key)
        assert (done.attempts, [past.epoch for past in done.past]) == ((), [run[1]])


# -- cancelling, deadlines, tidying up ---------------------------------------------------------------------------------------


async def test_a_queued_job_that_is_cancelled_ends_and_never_runs(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, models=()) as worker, routers.one(bus) as router:
        key = await submit(bus)
        await eventually(lambda: key in router.queue)
        mark = CancelMark(submitted=(await folder(bus, key)).sequence, reason="not wanted")
        await Journal(bus).mark_cancelled(key, mark, ttl=60)
        done = await ended(bus, key)
        assert (done.state, done.fault and done.fault.message) == (JobState.CANCELLED, "not wanted")
        assert not worker.executed


async def test_a_cancel_mark_for_an_older_life_of_the_id_changes_nothing(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, models=()), routers.one(bus) as router:
        key = await submit(bus)
        await Journal(bus).mark_cancelled(key, CancelMark(submitted=0, reason="late"), ttl=60)
        other = await submit(bus)
        await eventually(lambda: other in router.queue)
        assert router.index.jobs[key].cancel is None
        assert key in router.queue


async def test_the_worker_of_a_bound_job_is_told_to_cancel_until_it_has_ended(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus) as worker, routers.one(bus):
        key = await submit(bus)
        run = await runs_on(worker, key)
        worker._cancelled = _nothing  # type: ignore[method-assign,assignment]
        binding = await binding_of(bus, key)
        assert binding
        await Journal(bus).mark_cancelled(key, CancelMark(submitted=binding.submitted, reason="stop it"), ttl=60)
        await eventually(lambda: len(worker.cancelled) >= 2)
        assert {(wish.epoch, wish.reason, wish.fenced) for wish in worker.cancelled} == {(run[1], "stop it", False)}
        await worker.finish(run, JobState.CANCELLED)
        assert (await ended(bus, key)).state is JobState.CANCELLED


async def test_a_job_whose_deadline_passes_in_the_queue_expires(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, models=()) as worker, routers.one(bus):
        key = await submit(bus, deadline_s=0.3)
        done = await ended(bus, key)
        assert (done.state, done.fault and done.fault.code) == (JobState.EXPIRED, Code.DEADLINE_EXCEEDED)
        assert not worker.executed


async def test_deadlines_count_by_the_servers_clock_not_by_this_machines(
    bus: Bus, routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadline counts from the server's timestamp of `new`, so a wrong clock here neither ends nor keeps a job."""
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + 7200)
    async with fake_worker(bus, models=()) as worker, routers.one(bus) as router:
        key, short = await submit(bus), await submit(bus, deadline_s=0.3)
        assert (await ended(bus, short)).state is JobState.EXPIRED
        assert key in router.queue
        worker.models, worker.finish_after = ("m:1",), 0
        done = await ended(bus, key)
        assert done.decision
        assert done.decision.waited_ms < 60_000


async def test_a_run_that_its_worker_does_not_end_in_time_is_taken_away(
    bus: Bus, routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oversight, "OVERDUE_S", 0.2)
    async with fake_worker(bus) as worker, routers.one(bus):
        key = await submit(bus, deadline_s=0.5)
        await runs_on(worker, key)
        assert (await ended(bus, key)).state is JobState.EXPIRED
        await eventually(lambda: [wish.fenced for wish in worker.cancelled] == [True])


async def test_after_done_new_and_active_are_emptied(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, finish_after=0), routers.one(bus) as router:
        key = await submit(bus)
        await ended(bus, key)
        await eventually(lambda: emptied(bus, key))
        await eventually(lambda: not router.index.leftovers)
        assert isinstance((await folder(bus, key)).facts, Completion)


async def test_the_parts_of_a_large_request_go_with_it(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, models=()) as worker, routers.one(bus):
        key = a_key()
        await Journal(bus).write(key, "new", a_submission(), b"x" * 600_000, expected=0, ttl=600)
        assert await bus.last(JOBS, subjects.parts_of_job(key)) is not None
        worker.models, worker.finish_after = ("m:1",), 0
        await ended(bus, key)
        await eventually(lambda: _gone(bus, key))


async def _gone(bus: Bus, key: JobKey) -> bool:
    return await bus.last(JOBS, subjects.parts_of_job(key)) is None


async def test_emptying_that_was_lost_is_repeated(bus: Bus, routers: Routers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidier, "RETRY_S", 0.1)
    async with fake_worker(bus, finish_after=0), routers.one(bus) as router:
        tidy, failures = router._transitions.tidy, [Unconfirmed("lost")] * 2

        async def lossy(key, leftover):  # type: ignore[no-untyped-def]
            if failures:
                raise failures.pop()
            await tidy(key, leftover)

        router._transitions.tidy = lossy  # type: ignore[method-assign]
        key = await submit(bus)
        await eventually(lambda: emptied(bus, key))
        assert not failures


async def test_a_finished_job_is_erased_but_its_state_and_digest_stay(bus: Bus, routers: Routers) -> None:
    """DELETE: `done` is replaced by state and digest, the rest is emptied, parts and output are purged."""
    async with fake_worker(bus) as worker, routers.one(bus):
        key = await submit(bus)
        run = await runs_on(worker, key)
        await worker.keep_segment(run, 0, b'{"text":"hello"}\n')
        await worker.finish(run)
        done = await ended(bus, key)
        sequence = (await folder(bus, key)).sequence
        refused = Erase(client=key.client, job=key.job, sequence=sequence - 1)
        assert not decode_erase_answer(await bus.request(subjects.router("erase"), encode(refused))).erased
        wish = encode(Erase(client=key.client, job=key.job, sequence=sequence))
        for _ in range(2):  # said again it is harmless
            assert decode_erase_answer(await bus.request(subjects.router("erase"), wish)).erased
        left = await folder(bus, key)
        assert isinstance(left.facts, Completion)
        assert (left.body, left.facts.erased, left.facts.state) == (b"", True, JobState.SUCCEEDED)
        assert left.facts.log_digest == done.log_digest
        assert await emptied(bus, key)
        assert await bus.last("OUT", subjects.segments_of_job(key)) is None


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.EXPIRED])
async def test_a_job_that_may_be_retried_keeps_its_request_until_it_is_erased(
    bus: Bus, routers: Routers, state: JobState
) -> None:
    """Also over a restart of the router, right after the end and later, with its parts, and never runs again by itself."""
    key = a_key()
    body = b"x" * 600_000
    await Journal(bus).write(key, "new", a_submission(), body, expected=0, ttl=600)
    async with fake_worker(bus) as worker:
        async with routers.one(bus) as router:
            run = await runs_on(worker, key)
            await worker.finish(run, state, FAULT)
            await eventually(lambda: _is_emptied(bus, key, "active"))
            await eventually(lambda: not router.index.leftovers)
        for _ in range(2):
            async with routers.one(bus) as router:
                await heard(router, 1)
                other = await submit(bus)
                await worker.finish(await runs_on(worker, other))
                await eventually(lambda other=other: emptied(bus, other))
                await eventually(lambda router=router: not router.index.leftovers and not router.index.jobs)
                assert await _request(bus, key) == body
                await bus.api(f"STREAM.PURGE.{JOBS}", {"filter": subjects.record(key, "active")})  # its 60 s are over
        assert worker.executed[run] == 1
        async with routers.one(bus):
            wish = encode(Erase(client=key.client, job=key.job, sequence=(await folder(bus, key)).sequence))
            assert decode_erase_answer(await bus.request(subjects.router("erase"), wish)).erased
            assert await emptied(bus, key)
            assert await _gone(bus, key)


async def _is_emptied(bus: Bus, key: JobKey, record: subjects.Record) -> bool:
    stored = await bus.last(JOBS, subjects.record(key, record))
    return stored is not None and FACTS not in stored.headers


async def _request(bus: Bus, key: JobKey) -> bytes | None:
    stored = await bus.last(JOBS, subjects.record(key, "new"))
    assert stored is not None
    found = await Journal(bus).record_at(stored.sequence)
    return await Journal(bus).body(key, found[1]) if found and found[1].facts else None


async def test_an_unfinished_job_is_not_erased(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, models=()), routers.one(bus):
        key = await submit(bus)
        wish = encode(Erase(client=key.client, job=key.job, sequence=(await folder(bus, key)).sequence))
        answer = decode_erase_answer(await bus.request(subjects.router("erase"), wish))
        assert (answer.erased, answer.reason) == (False, "the job is not finished")


# -- strays ----------------------------------------------------------------------------------------------------------------


async def test_a_stray_run_is_stopped_only_after_the_leader_was_read(bus: Bus, routers: Routers) -> None:
    """A router's view may be old: a greater epoch, this one listed as past, a final state or absence must stand there."""
    async with fake_worker(bus, slots=2) as worker, routers.one(bus) as router:
        key = await submit(bus)
        run = await runs_on(worker, key)
        await worker.beat()
        router.index.forget(key)  # this router's view is wrong; the folder still says: bound so
        router.board.drop(key)
        await eventually(lambda: router.board.bound_as(run, worker.boot))
        assert worker.cancelled == []
        gone = (a_key("never_was"), 7)
        worker.running[gone] = worker.running[run]
        await eventually(lambda: worker.cancelled)
        assert {(wish.job, wish.epoch, wish.fenced) for wish in worker.cancelled} == {("never_was", 7, True)}
        assert run in worker.running


# -- full --------------------------------------------------------------------------------------------------------------------


async def test_a_router_rests_while_the_stream_is_full_and_goes_on_afterwards(bus: Bus, routers: Routers) -> None:
    """JOBS full: bind, fail, bind again at full speed would keep the server from recovering."""
    async with fake_worker(bus, finish_after=0) as worker, routers.one(bus) as router:
        bind, tried, full = router._transitions.bind, [], True

        async def refused(job, boot, decision):  # type: ignore[no-untyped-def]
            tried.append(time.monotonic())
            if full:
                raise Full("maximum bytes exceeded")
            return await bind(job, boot, decision)

        router._transitions.bind = refused  # type: ignore[method-assign]
        keys = [await submit(bus) for _ in range(10)]  # or each of them would be tried in the meantime
        await eventually(lambda: len(tried) >= 3)
        assert tried[2] - tried[0] >= 2 * loop.RETRY_MS / 1000
        assert not worker.asked
        assert not router.fleet.nodes["n1"].runs
        full = False
        for key in keys:
            assert (await ended(bus, key)).state is JobState.SUCCEEDED
