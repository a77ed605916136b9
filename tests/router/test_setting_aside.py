"""A node that fails many jobs is left alone for a while, and one whose worker says what is stuck (DESIGN §3, Nodes)."""

import pytest

from libs.common.bus.connection import Bus
from libs.common.contracts.faults import Code
from libs.common.states import JobState
from services.router import fleet
from tests.router.building import BUSY, FAULT, Routers, binding_of, ended, heard, submit
from tests.support.fake_worker import fake_worker
from tests.support.waiting import eventually


async def test_a_node_that_fails_three_jobs_in_a_row_is_left_alone_and_comes_back(
    bus: Bus, routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "SET_ASIDE_S", 60.0)
    async with fake_worker(bus, "a", gives_back=FAULT) as broken, routers.one(bus) as router:
        await heard(router, 1)
        keys = [await submit(bus) for _ in range(fleet.FAILED_JOBS)]
        await eventually(lambda: router.fleet.nodes["a"].set_aside_until)
        asked = len(broken.executed)
        async with fake_worker(bus, "b", finish_after=0, slots=4, loaded=()) as well:
            more = [await submit(bus) for _ in range(4)]
            for key in keys + more:
                done = await ended(bus, key)
                assert (done.state, done.node) == (JobState.SUCCEEDED, "b")
                assert done.decision is not None
            assert ("a", "set aside after failures") in [(each.node, each.verdict) for each in done.decision.candidates]
            assert len(broken.executed) == asked, "though it has the model in memory"
            broken.gives_back, broken.finish_after = None, 0
            router.fleet.nodes["a"].set_aside_until = 0.0  # its time is over
            await well.vanish()
            assert (await ended(bus, await submit(bus))).node == "a"
        assert not router.fleet.nodes["a"].failing


async def test_when_no_other_node_has_the_model_the_jobs_wait_and_do_not_fail(
    bus: Bus, routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "SET_ASIDE_S", 0.5)
    async with fake_worker(bus, gives_back=FAULT, slots=3) as worker, routers.one(bus) as router:
        await heard(router, 1)
        keys = [await submit(bus) for _ in range(fleet.FAILED_JOBS)]
        await eventually(lambda: router.fleet.nodes["n1"].set_aside_until)
        worker.gives_back, worker.finish_after = None, 0
        asked = len(worker.executed)
        late = await submit(bus)
        for key in [*keys, late]:
            assert (await ended(bus, key)).state is JobState.SUCCEEDED
        assert (await ended(bus, late)).attempts == ()
        assert len(worker.executed) == asked + len(keys) + 1


async def test_one_poison_job_sets_no_node_aside(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, gives_back=FAULT) as worker, routers.one(bus) as router:
        poison = await ended(bus, await submit(bus))
        assert (poison.state, len(poison.attempts)) == (JobState.FAILED, 3)
        assert router.fleet.nodes["n1"].set_aside_until == 0.0
        worker.gives_back, worker.finish_after = None, 0
        assert (await ended(bus, await submit(bus))).state is JobState.SUCCEEDED


async def test_busy_nodes_and_jobs_whose_node_went_away_count_for_nothing(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, "a", slots=4, gives_back=BUSY) as busy, routers.one(bus) as router:
        keys = [await submit(bus) for _ in range(4)]
        await eventually(lambda: len(busy.executed) >= 8)
        assert not router.fleet.nodes["a"].failing
        busy.gives_back = None
        for key in keys:
            await eventually(lambda key=key: busy.run_of(key))
        await busy.vanish()
        async with fake_worker(bus, "b", slots=4, finish_after=0):
            for key in keys:
                assert [attempt.fault.code for attempt in (await ended(bus, key)).attempts] == [Code.NODE_FAILED]
        assert router.fleet.nodes["a"].gone
        assert not router.fleet.nodes["a"].failing
        async with fake_worker(bus, "a", "boot-2", finish_after=0):
            await heard(router, 2)
            assert router.fleet.nodes["a"].set_aside_until == 0.0


async def test_a_node_that_says_it_is_stuck_gets_no_work_until_it_says_that_it_is_not(
    bus: Bus, routers: Routers
) -> None:
    async with fake_worker(bus, "a", suspect_models=("m:1",), finish_after=0) as stuck, routers.one(bus) as router:
        await heard(router, 1)
        key = await submit(bus)
        await stuck.beat()
        await stuck.beat()
        assert await binding_of(bus, key) is None
        assert not stuck.executed
        stuck.suspect_models = ()
        assert (await ended(bus, key)).node == "a"
