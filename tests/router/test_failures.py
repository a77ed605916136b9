"""What the router does when workers, routers, gateways or words are gone (DESIGN §3 Router and Nodes, §4 A worker dies)."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away
from libs.common.bus.link import Message
from libs.common.contracts import subjects
from libs.common.contracts.control import decode_freeze
from libs.common.contracts.events import frame
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.jobs import Binding, CancelMark, PastEpoch, Submission
from libs.common.contracts.streams import JOBS
from libs.common.contracts.subjects import JobKey
from libs.common.folder import Entry
from libs.common.journal import Journal
from libs.common.states import JobState
from services.router import fleet, readers, rebuild
from services.router.fleet import Hold, RunKey
from tests.router.building import Routers, a_completion, binding_of, ended, folder, heard, silenced, submit
from tests.support.fake_worker import FakeWorker, fake_worker
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

HELLO = b'{"text":"hello"}\n'
WORLD = b'{"text":" world"}\n'


async def runs_on(worker: FakeWorker, key: JobKey) -> tuple[JobKey, int]:
    found: tuple[JobKey, int] = await eventually(lambda: worker.run_of(key))
    return found


@contextlib.asynccontextmanager
async def watching(bus: Bus, key: JobKey, held: bytes = b"", offset: int = 0) -> AsyncIterator[list[int]]:
    """A gateway that watches the job and holds these bytes; yields the epochs it was asked to freeze."""
    asked: list[int] = []

    async def answer(message: Message) -> bytes:
        epoch = decode_freeze(message.data).epoch
        asked.append(epoch)
        return frame(offset, held) if epoch else frame(0, b"")

    subscription = await bus.serve(subjects.prefix(key), answer)
    try:
        yield asked
    finally:
        await subscription.stop()


# -- a node is gone ----------------------------------------------------------------------------------------------------------


async def test_after_three_pings_that_nobody_heard_the_jobs_of_a_node_go_elsewhere(bus: Bus, routers: Routers) -> None:
    """3 ms after a kill -9 there is nobody: no need to wait for eight seconds of silence."""
    async with fake_worker(bus, "a") as dying, routers.one(bus) as router:
        key = await submit(bus)
        run = await runs_on(dying, key)
        async with fake_worker(bus, "b", finish_after=0):
            await heard(router, 2)
            await dying.vanish()
            done = await ended(bus, key)
        assert (done.node, done.state) == ("b", JobState.SUCCEEDED)
        assert done.past == (PastEpoch(epoch=run[1], base=0),)
        assert [(a.node, a.epoch, a.fault.code) for a in done.attempts] == [("a", run[1], Code.NODE_FAILED)]
        assert router.fleet.nodes["a"].gone


async def test_a_silent_node_loses_its_jobs_and_the_fenced_run_is_stopped_when_it_speaks_again(
    bus: Bus, routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong suspicion: the run goes on, but its `done` is refused, and it is told to stop (§7.3, §7.4)."""
    monkeypatch.setattr(fleet, "SUSPECT_S", 0.5)
    monkeypatch.setattr(fleet, "DEAD_S", 0.8)
    async with fake_worker(bus, "a") as silent, routers.one(bus) as router:
        key = await submit(bus)
        run = await runs_on(silent, key)
        async with fake_worker(bus, "b") as other:
            await heard(router, 2)
            silent.beating = False
            second = await runs_on(other, key)
            assert second[1] > run[1]
            silent.beating = True
            await eventually(lambda: silent.cancelled)
            assert (silent.cancelled[0].epoch, silent.cancelled[0].fenced) == (run[1], True)
            await eventually(lambda: not router.fleet.nodes["a"].runs)
            await other.finish(second)
            assert (await ended(bus, key)).node == "b"
            assert other.cancelled == []


async def test_the_done_of_a_fenced_worker_is_refused(
    bus: Bus, routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requeue is the fence: a compare-and-set on the whole folder."""
    monkeypatch.setattr(fleet, "DEAD_S", 0.8)
    async with fake_worker(bus, "a") as silent, routers.one(bus) as router:
        key = await submit(bus)
        run = await runs_on(silent, key)
        async with fake_worker(bus, "b") as other:
            await heard(router, 2)
            silent.beating = False
            second = await runs_on(other, key)
            assert not await silent.finish(run)
            assert await other.finish(second)
            assert (await ended(bus, key)).epoch == second[1]


async def test_a_new_boot_means_that_the_jobs_of_the_old_one_are_gone_at_once(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, "a", "boot-1") as old, routers.one(bus) as router:
        key = await submit(bus)
        run = await runs_on(old, key)
        await silenced(router, old)
        async with fake_worker(bus, "a", "boot-2", finish_after=0) as new:
            done = await ended(bus, key)
            assert (done.boot, [past.epoch for past in done.past]) == ("boot-2", [run[1]])
            assert len(new.executed) == 1


# -- what was shown ------------------------------------------------------------------------------------------------------------


async def bound_elsewhere(bus: Bus, key: JobKey, worker: FakeWorker) -> tuple[RunKey, Entry]:
    run = await runs_on(worker, key)
    entry = await folder(bus, key)
    assert isinstance(entry.facts, Binding)
    return run, entry


async def test_text_that_a_watcher_was_shown_goes_to_another_node_with_the_next_binding(
    bus: Bus, routers: Routers
) -> None:
    """DESIGN §4: base = what was shown; the next `active` carries that text in its body, whole events only."""
    async with fake_worker(bus, "a") as dying, routers.one(bus) as router:
        key = await submit(bus)
        run = await runs_on(dying, key)
        async with fake_worker(bus, "b") as other, watching(bus, key, HELLO + b'{"text":" wor') as asked:
            await heard(router, 2)
            await dying.vanish()
            second, entry = await bound_elsewhere(bus, key, other)
            assert entry.facts.past == (PastEpoch(epoch=run[1], base=len(HELLO)),)
            assert (entry.facts.base, entry.body) == (len(HELLO), HELLO)
            assert asked == [run[1]]
            assert second[1] > run[1]


async def test_the_base_never_shrinks_when_the_second_node_dies_as_well(bus: Bus, routers: Routers) -> None:
    """Nobody watches any more and OUT holds nothing of the second attempt: the text is the one its binding carried."""
    async with fake_worker(bus, "a") as first, routers.one(bus) as router:
        key = await submit(bus)
        run = await runs_on(first, key)
        async with fake_worker(bus, "b") as second:
            await heard(router, 2)
            async with watching(bus, key, HELLO):
                await first.vanish()
                second_run, _ = await bound_elsewhere(bus, key, second)
            async with fake_worker(bus, "c") as third:
                await heard(router, 3)
                await second.vanish()
                _, entry = await bound_elsewhere(bus, key, third)
                assert entry.body == HELLO
                assert entry.facts.past == (
                    PastEpoch(epoch=run[1], base=len(HELLO)),
                    PastEpoch(epoch=second_run[1], base=len(HELLO)),
                )


async def test_text_waits_durably_for_a_slot_and_a_restarted_router_binds_with_it(bus: Bus, routers: Routers) -> None:
    """No node is free: a second requeue holds the text, so that it does not depend on who gathered it."""
    async with fake_worker(bus, "a") as dying:
        async with routers.one(bus):
            key = await submit(bus)
            await runs_on(dying, key)
            async with watching(bus, key, HELLO):
                await dying.vanish()
                entry = await eventually(lambda: _kept(bus, key))
                assert (entry.facts.node, entry.body) == (None, HELLO)
        async with fake_worker(bus, "b") as other, routers.one(bus):
            _, bound = await bound_elsewhere(bus, key, other)
            assert bound.body == HELLO


async def _kept(bus: Bus, key: JobKey) -> Entry | None:
    entry = await folder(bus, key)
    return entry if isinstance(entry.facts, Binding) and entry.facts.base else None


async def test_after_three_failures_a_job_ends_with_what_was_shown_as_its_log(bus: Bus, routers: Routers) -> None:
    """Poison: it ends `failed`, says that it was cut off, and shows the history of its attempts."""
    broken = Fault(code=Code.NODE_FAILED, message="out of memory")
    async with fake_worker(bus) as worker, routers.one(bus):
        key = await submit(bus)
        async with watching(bus, key, HELLO):
            for _ in range(3):
                await worker.give_back(await runs_on(worker, key), broken)
            done = await ended(bus, key)
        assert (done.state, done.fault and done.fault.code) == (JobState.FAILED, Code.INTERRUPTED)
        assert len(done.attempts) == 3
        assert (await folder(bus, key)).body.startswith(HELLO + b'{"end":{')


async def test_an_acked_segment_counts_as_shown_and_a_watcher_goes_on_from_it(bus: Bus, routers: Routers) -> None:
    """Base = the longest whole-event prefix among the gateways and OUT."""
    async with fake_worker(bus) as worker, routers.one(bus):
        key = await submit(bus)
        run = await runs_on(worker, key)
        await worker.keep_segment(run, 0, HELLO)
        async with watching(bus, key, HELLO[-3:] + WORLD, offset=len(HELLO) - 3):
            await worker.vanish()
            entry = await eventually(lambda: _kept(bus, key))
        assert [past.base for past in entry.facts.past] == [len(HELLO + WORLD)]
        assert entry.body == HELLO + WORLD


async def test_when_nothing_was_shown_a_job_starts_again_and_its_watchers_have_frozen_the_epoch(
    bus: Bus, routers: Routers
) -> None:
    async with fake_worker(bus, "a") as dying, routers.one(bus) as router:
        key = await submit(bus)
        run = await runs_on(dying, key)
        async with fake_worker(bus, "b", finish_after=0), watching(bus, key) as asked:
            await heard(router, 2)
            await dying.vanish()
            done = await ended(bus, key)
        assert (done.node, done.past) == ("b", (PastEpoch(epoch=run[1], base=0),))
        assert asked == [run[1]]


async def test_nobody_binds_or_ends_before_what_was_shown_is_known(bus: Bus, routers: Routers) -> None:
    """A requeue lists its epoch without a base until gathered; the job was cancelled as well, and still waits for it."""
    async with fake_worker(bus, "a") as dying, fake_worker(bus, "b", models=()) as other, routers.one(bus) as router:
        await heard(router, 2)
        key = await submit(bus)
        run = await runs_on(dying, key)
        failures, heals, shown = 0, asyncio.Event(), router._gatherer._shown

        async def failing(job, epoch):  # type: ignore[no-untyped-def]
            nonlocal failures
            if not heals.is_set():
                failures += 1
                raise Away("nobody can be asked")
            return await shown(job, epoch)

        router._gatherer._shown = failing  # type: ignore[method-assign]
        other.models = ("m:1",)
        await dying.vanish()

        async def requeued() -> bool:
            binding = await binding_of(bus, key)
            return binding is not None and binding.past == (PastEpoch(epoch=run[1]),)

        await eventually(requeued)
        router.index.jobs[key].cancel = "not wanted"
        await other.beat()
        await eventually(lambda: router.fleet.nodes["b"].disk)
        await eventually(lambda: failures >= 3)
        assert await requeued()
        assert not other.asked
        heals.set()
        assert (await ended(bus, key)).state is JobState.CANCELLED


# -- routers -----------------------------------------------------------------------------------------------------------------


async def test_a_restarted_router_finds_bound_and_queued_jobs_again(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus) as worker:
        async with routers.one(bus):
            bound = await submit(bus)
            run = await runs_on(worker, bound)
            queued = await submit(bus)
        async with routers.one(bus) as router:
            await eventually(lambda: queued in router.queue)
            assert router.board.bound_as(run, worker.boot)
            await worker.finish(run)
            second = await runs_on(worker, queued)
            await worker.finish(second)
            await ended(bus, queued)
            assert worker.executed == {run: 1, second: 1}
            assert worker.most == 1


async def test_after_a_restart_a_bound_job_keeps_its_slot_although_its_worker_was_never_asked(
    bus: Bus, routers: Routers
) -> None:
    """The order was lost with the router that bound the job: the slot is taken all the same, and the job is ordered again."""
    async with fake_worker(bus) as worker:
        async with routers.one(bus) as router:
            await heard(router, 1)
            worker.absent = 1_000
            bound = await submit(bus)
            await eventually(lambda: worker.asked)
            queued = await submit(bus)
        assert not worker.executed
        worker.absent = 0
        async with routers.one(bus):
            first = await runs_on(worker, bound)
            await worker.finish(first)
            await worker.finish(await runs_on(worker, queued))
            await ended(bus, queued)
            assert worker.most == 1


async def test_a_job_that_ended_while_no_router_lived_is_not_run_again(bus: Bus, routers: Routers) -> None:
    """`done` is followed only from where the rebuild began: older ones show when a compare-and-set on them fails."""
    async with fake_worker(bus, "a") as worker:
        async with routers.one(bus):
            key = await submit(bus)
            run = await runs_on(worker, key)
        await worker.finish(run)
        await worker.vanish()
        async with fake_worker(bus, "b", finish_after=0) as other, routers.one(bus) as router:
            later = await submit(bus)
            await ended(bus, later)
            await eventually(lambda: key not in router.index.jobs)
            assert (await ended(bus, key)).node == "a"
            assert not [run for run in other.executed if run[0] == key]


async def test_what_failed_before_the_rebuild_is_looked_up_and_takes_no_write(
    bus: Bus, nats: NatsServer, routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request is kept for a retry, and its `done` is not followed: to a rebuild it looks queued."""
    monkeypatch.setattr(rebuild, "LOOK_AT_ONCE", 3)
    failed = [await submit(bus) for _ in range(7)]
    journal = Journal(bus)
    for key in failed:
        entry = await folder(bus, key)
        assert isinstance(entry.facts, Submission)
        done = a_completion(entry.facts, entry.sequence, state=JobState.FAILED)
        await journal.write(key, "done", done, b"", expected=entry.sequence, ttl=600)
    queued = await submit(bus)
    async with connected(nats) as own, fake_worker(bus, finish_after=0) as worker:
        written, append = [], own.append

        async def watched(subject: str, *args: Any, **more: Any) -> Any:
            written.append(subject)
            return await append(subject, *args, **more)

        monkeypatch.setattr(own, "append", watched)
        async with routers.one(own) as router:
            assert set(router.index.jobs) <= {queued}
            await ended(bus, queued)
            assert {key for key, _ in worker.executed} == {queued}
            assert not [s for s in written if s.startswith("jobs.") and subjects.parse_record(s)[0] in failed]


async def test_a_rebuild_that_cannot_look_up_what_ended_goes_on_without(
    bus: Bus, nats: NatsServer, routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await submit(bus)
    async with connected(nats) as own, fake_worker(bus, finish_after=0):

        async def fails(*args: Any, **more: Any) -> Any:
            raise Away("no answer")

        monkeypatch.setattr(own, "last_of_each", fails)
        async with routers.one(own):
            assert (await ended(bus, key)).state is JobState.SUCCEEDED


async def test_a_job_that_was_cancelled_while_no_router_lived_is_not_run(bus: Bus, routers: Routers) -> None:
    key = await submit(bus)
    mark = CancelMark(submitted=(await folder(bus, key)).sequence, reason="not wanted")
    await Journal(bus).mark_cancelled(key, mark, ttl=600)
    async with fake_worker(bus, finish_after=0) as worker, routers.one(bus):
        assert (await ended(bus, key)).state is JobState.CANCELLED
        assert not worker.executed


async def test_when_the_stream_was_made_anew_nothing_of_before_is_believed(bus: Bus, routers: Routers) -> None:
    """All consumers start over together; the router acts again once all of them have caught up."""
    async with fake_worker(bus, finish_after=0) as worker, routers.one(bus) as router:
        await ended(bus, await submit(bus))
        await submit(bus, model="nobody:1")
        await eventually(lambda: router.index.jobs)
        config = {k: v for k, v in (await bus.api(f"STREAM.INFO.{JOBS}"))["config"].items() if k != "metadata"}
        await bus.api(f"STREAM.DELETE.{JOBS}")
        await bus.api(f"STREAM.CREATE.{JOBS}", config)
        key = await submit(bus)
        assert (await ended(bus, key, within=20)).state is JobState.SUCCEEDED
        await eventually(lambda: not router.index.jobs)
        assert {job for job, _ in worker.executed} >= {key}


async def test_two_active_routers_lose_no_job_and_run_none_twice(bus: Bus, nats: NatsServer, routers: Routers) -> None:
    """Leadership is for order and fairness; safety never depends on it."""
    async with connected(nats) as second_bus, contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(fake_worker(bus, name, slots=2, finish_after=0.005)) for name in ("a", "b")
        ]
        one = await stack.enter_async_context(routers.one(bus))
        two = await stack.enter_async_context(routers.one(second_bus))
        await heard(one, 2)
        await heard(two, 2)
        keys = await asyncio.gather(*(submit(bus) for _ in range(50)))
        for key in keys:
            assert (await ended(bus, key, within=20)).state is JobState.SUCCEEDED
        executed: Counter[tuple[JobKey, int]] = sum((worker.executed for worker in workers), Counter())
        assert {key for key, _ in executed} == set(keys)
        assert set(executed.values()) == {1}
        for router in (one, two):
            await eventually(lambda router=router: not router.index.jobs)
            await eventually(lambda router=router: not any(view.runs for view in router.fleet.nodes.values()))


async def test_a_slot_is_not_held_for_a_run_that_nobody_bound(bus: Bus, routers: Routers) -> None:
    """However it came about: an answer that was lost, a record that was folded late."""
    async with fake_worker(bus, slots=1, finish_after=0) as worker, routers.one(bus) as router:
        await heard(router, 1)
        router.fleet.nodes[worker.node].reserve((JobKey("c", "gone"), 5), Hold("m"))
        assert (await ended(bus, await submit(bus), within=20)).state is JobState.SUCCEEDED


# -- readers -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "UNWATCHED_S", 0.4)


@pytest.mark.usefixtures("impatient")
async def test_a_chat_job_that_nobody_reads_is_cancelled_after_two_looks(bus: Bus, routers: Routers) -> None:
    """§7.4: its client and its gateway are both gone, and nobody said that it should be kept."""
    async with fake_worker(bus) as worker, routers.one(bus):
        key = await submit(bus, detached=False)
        await runs_on(worker, key)
        await eventually(lambda: worker.cancelled)
        done = await ended(bus, key)
        assert (done.state, worker.cancelled[0].reason) == (JobState.CANCELLED, "nobody reads the answer any more")


@pytest.mark.usefixtures("impatient")
async def test_one_look_without_a_reader_cancels_nothing_if_somebody_comes_back(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, models=()), routers.one(bus) as router:
        key = await submit(bus, detached=False)
        await eventually(lambda: key in router.board.care and router.board.care[key].unwatched_since)
        async with watching(bus, key) as asked:
            await eventually(lambda: len(asked) >= 3)
            assert router.board.care[key].unwatched_since is None
            assert router.index.jobs[key].cancel is None
        assert set(asked) == {0}


@pytest.mark.usefixtures("impatient")
async def test_a_detached_job_needs_no_reader(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, models=()), routers.one(bus) as router:
        kept, unread = await submit(bus, detached=True), await submit(bus, detached=False)
        assert (await ended(bus, unread)).state is JobState.CANCELLED
        assert router.index.jobs[kept].cancel is None


# -- nothing is kept for jobs that have ended ------------------------------------------------------------------------------------


async def test_nothing_is_remembered_of_jobs_that_have_ended(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, slots=4, finish_after=0) as worker, routers.one(bus) as router:
        keys = await asyncio.gather(*(submit(bus, detached=False) for _ in range(30)))
        for key in keys:
            await ended(bus, key)
        await eventually(lambda: not router._deeds.busy and not router.index.leftovers and not router._tidier.under_way)
        await eventually(lambda: not router.fleet.nodes[worker.node].runs and not router.fleet.nodes[worker.node].holds)
        kept = (router.index.jobs, router.board.care, router.board.bound, router.board.due, router.board.waiting)
        assert [len(table) for table in kept] == [0] * len(kept)
        assert len(router.queue) == 0
