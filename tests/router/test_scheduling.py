"""The scheduler in service: quotes, places, policies, loads ahead of need, what runs are ordered with."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.link import Message
from libs.common.contracts import subjects
from libs.common.contracts.catalog import ModelPolicy, NodePolicy, model_record, node_record
from libs.common.contracts.codec import encode
from libs.common.contracts.control import (
    ModelAnswer,
    ModelOrder,
    ModelWork,
    PlaceAnswer,
    PlaceQuery,
    Quote,
    QuoteAnswer,
    decode_model_order,
    decode_place_answer,
    decode_quote_answer,
)
from libs.common.contracts.jobs import Timings, Usage
from libs.common.contracts.requests import Priority
from libs.common.contracts.streams import MODELS
from libs.common.contracts.subjects import JobKey
from libs.common.states import JobState
from services.router import loop
from services.router.fleet import Hold
from services.router.look import Look
from services.router.wishes import Loading, Pause, Placement
from tests.router.building import Routers, a_completion, a_submission, ended, heard, submit
from tests.support.fake_worker import FakeWorker, fake_worker
from tests.support.waiting import eventually


async def quoted(bus: Bus, **submission: Any) -> QuoteAnswer:
    query = Quote(client="acme", submission=a_submission(**submission))
    return decode_quote_answer(await bus.request(subjects.router("quote"), encode(query), timeout=5))


async def placed(bus: Bus, key: JobKey) -> PlaceAnswer:
    query = PlaceQuery(client=key.client, job=key.job)
    return decode_place_answer(await bus.request(subjects.router("place"), encode(query), timeout=5))


@contextlib.asynccontextmanager
async def loading(
    bus: Bus, worker: FakeWorker, state: ModelWork = ModelWork.DONE, load_s: float = 0.0
) -> AsyncIterator[list[ModelOrder]]:
    """A worker that carries out orders on models: at once, or never."""
    orders: list[ModelOrder] = []

    async def receive(message: Message) -> bytes:
        orders.append(decode_model_order(message.data))
        if state is ModelWork.DONE:
            worker.loaded = (*worker.loaded, orders[-1].model)
            await worker.beat()
        return encode(ModelAnswer(state=state, status="" if state is ModelWork.DONE else "no", load_s=load_s))

    serving = await bus.serve(subjects.worker(worker.node, worker.boot, "model"), receive)
    try:
        yield orders
    finally:
        await serving.stop()


# -- quotes and places ---------------------------------------------------------------------------------------------------------


async def test_a_quote_says_where_a_job_would_go_and_holds_nothing(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, "cold", loaded=()), fake_worker(bus, "warm") as warm, routers.one(bus) as router:
        await heard(router, 2)
        answer = await quoted(bus, prompt_tokens=1500, output_tokens=50)
        assert answer.decision
        assert (answer.decision.node, answer.decision.cold) == ("warm", False)
        assert answer.start_s is not None
        assert answer.finish_s is not None
        assert 0 < answer.start_s < answer.finish_s
        assert answer.guessed
        assert not router.fleet.nodes[warm.node].runs
        assert len(router.queue) == 0


async def test_a_quote_counts_those_who_wait_already(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, slots=1), routers.one(bus) as router:
        await heard(router, 1)
        free = await quoted(bus)
        for _ in range(5):
            await submit(bus)
        await eventually(lambda: len(router.queue) == 4)
        busy = await quoted(bus)
        assert free.start_s is not None
        assert busy.start_s is not None
        assert busy.start_s > free.start_s + 5


async def test_a_quote_for_what_no_node_has_says_so(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus), routers.one(bus) as router:
        await heard(router, 1)
        answer = await quoted(bus, model="nobody:1b")
        assert (answer.decision, answer.start_s, answer.reason) == (None, None, "no node has the model")


async def test_who_waits_is_told_place_start_and_reason(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, slots=1) as worker, routers.one(bus) as router:
        await heard(router, 1)
        running = await submit(bus)
        await eventually(lambda: worker.run_of(running))
        waiting = [await submit(bus) for _ in range(3)]
        await eventually(lambda: len(router.queue) == 3)
        answers = [await placed(bus, key) for key in waiting]
        assert [answer.position for answer in answers] == [1, 2, 3]
        starts = [answer.start_s or 0 for answer in answers]
        assert starts == sorted(starts)
        assert starts[0] < starts[2]
        assert answers[0].reason == "all slots taken"
        assert await placed(bus, running) == PlaceAnswer()


# -- policies -------------------------------------------------------------------------------------------------------------------


async def test_a_draining_node_gets_no_work_until_it_may_again(bus: Bus, routers: Routers) -> None:
    async with (
        fake_worker(bus, "a", finish_after=0),
        fake_worker(bus, "b", loaded=(), finish_after=0),
        routers.one(bus) as router,
    ):
        await heard(router, 2)
        bucket = Bucket(bus, MODELS)
        await bucket.put(node_record("a"), encode(NodePolicy(name="a", draining=True)))
        await eventually(lambda: router.scheduler.pricing.catalog.draining("a"))
        done = await ended(bus, await submit(bus))
        assert done.node == "b"
        assert done.decision
        assert ("a", "node is draining") in [(each.node, each.verdict) for each in done.decision.candidates]
        await bucket.delete(node_record("a"))
        await eventually(lambda: not router.scheduler.pricing.catalog.draining("a"))
        assert (await ended(bus, await submit(bus))).node == "a"


async def test_a_pinned_model_is_loaded_on_its_node_and_told_to_stay(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, loaded=()) as worker, loading(bus, worker) as orders, routers.one(bus) as router:
        await heard(router, 1)
        policy = ModelPolicy(name="m:1", pins=(worker.node,), num_ctx=8192)
        await Bucket(bus, MODELS).put(model_record("m:1"), encode(policy))
        await eventually(lambda: orders and "m:1" in router.fleet.nodes[worker.node].resident)
        assert [(order.model, order.keep_alive, order.num_ctx) for order in orders] == [("m:1", -1, 8192)]
        await submit(bus)
        await eventually(lambda: worker.asked)
        assert (worker.asked[0].keep_alive, worker.asked[0].num_ctx) == (-1, 8192)


async def test_a_load_ahead_that_failed_is_not_asked_for_again_at_once(bus: Bus, routers: Routers) -> None:
    async with (
        fake_worker(bus, loaded=(), finish_after=0) as worker,
        loading(bus, worker, ModelWork.FAILED) as orders,
        routers.one(bus) as router,
    ):
        await heard(router, 1)
        policy = ModelPolicy(name="m:1", pins=(worker.node,))
        await Bucket(bus, MODELS).put(model_record("m:1"), encode(policy))
        await eventually(lambda: orders)
        for _ in range(3):  # a job for the model is bound all the same: it gets the node's own error, if there is one
            assert (await ended(bus, await submit(bus))).state is JobState.SUCCEEDED
        assert len(orders) == 1


async def test_a_request_that_needs_more_context_gets_it_and_no_other_makes_it_smaller(
    bus: Bus, routers: Routers
) -> None:
    async with fake_worker(bus, slots=4) as worker, routers.one(bus) as router:
        await heard(router, 1)
        for needed in (0, 3000, 9000):
            await submit(bus, num_ctx=needed)
        await eventually(lambda: len(worker.asked) == 3)
        assert sorted(str(run.num_ctx) for run in worker.asked) == ["16384", "4096", "None"]


async def test_a_long_look_is_put_down_so_that_others_get_the_loop(
    bus: Bus, routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if every single step of it took too long."""
    monkeypatch.setattr(loop, "HOLD_S", 0.0)
    turns, looks = 0, []

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with fake_worker(bus, slots=12, loaded=()) as worker, routers.one(bus) as router:
        await heard(router, 1)
        for _ in range(12):
            await submit(bus, model="not:yet")
        await eventually(lambda: len(router.queue) == 12)

        class Counted(Look):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                looks.append([turns, 0])

            def step(self) -> Placement | Loading | Pause | None:
                wish = super().step()
                looks[-1][1] += not (wish is None or isinstance(wish, Pause))
                return wish

        monkeypatch.setattr(loop, "Look", Counted)
        task = asyncio.create_task(others())
        worker.models = worker.loaded = ("not:yet",)
        await worker.beat()
        await eventually(lambda: len(worker.running) == 12)
        task.cancel()
    wishes = [count for _, count in looks]
    assert (max(wishes), sum(wishes)) == (1, 12)
    assert len({turn for turn, count in looks if count}) == 12


# -- what is learned -------------------------------------------------------------------------------------------------------------


async def test_finished_jobs_teach_how_fast_a_node_is(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus) as worker, routers.one(bus) as router:
        await heard(router, 1)
        submission = a_submission(prompt_tokens=1000)
        key = JobKey("acme", "job_taught")
        router.board.fold(key, "new", submission, 10, 1_000)
        done = a_completion(
            submission, 10, node=worker.node, usage=Usage(prompt_tokens=1000, completion_tokens=100),
            timings=Timings(prefill=2.0, decode=10.0),
        )  # fmt: skip
        before = router.scheduler.pricing.speed(router.fleet.nodes[worker.node], "m:1")
        router.board.fold(key, "done", done, 11, 2_000)
        after = router.scheduler.pricing.speed(router.fleet.nodes[worker.node], "m:1")
        assert before != after
        assert (round(after.prefill_s, 6), round(after.decode_s, 6)) == (0.002, 0.1)
        assert router.scheduler.pricing.rates.answer_tokens("acme", "m:1", 0) == 100
        assert not (await quoted(bus)).guessed


async def test_a_load_ahead_of_need_teaches_how_long_a_load_takes(bus: Bus, routers: Routers) -> None:
    async with (
        fake_worker(bus, loaded=()) as worker,
        loading(bus, worker, load_s=33.0) as orders,
        routers.one(bus) as router,
    ):
        await heard(router, 1)
        await Bucket(bus, MODELS).put(model_record("m:1"), encode(ModelPolicy(name="m:1", pins=(worker.node,))))
        await eventually(lambda: orders)
        view, pricing = router.fleet.nodes[worker.node], router.scheduler.pricing
        await eventually(lambda: pricing.load_s(view, "m:1") == 33.0)


async def test_a_burst_of_one_client_does_not_come_before_everybody_else(bus: Bus, routers: Routers) -> None:
    """Shares: the flood was first, but the others need not wait until it is over."""
    async with fake_worker(bus, slots=1) as worker, routers.one(bus) as router:
        await heard(router, 1)
        flood = [await submit(bus, JobKey("flood", f"job_{n}"), output_tokens=100) for n in range(12)]
        await eventually(lambda: len(router.queue) == 11)
        quiet = [await submit(bus, JobKey(f"quiet{n}", "job_0"), output_tokens=100) for n in range(3)]
        await eventually(lambda: len(router.queue) == 14)
        order: list[JobKey] = []
        while len(order) < 8:
            await eventually(lambda: worker.running)
            run = next(iter(worker.running))
            order.append(run[0])
            await worker.finish(run)
        assert set(quiet) <= set(order)
        assert flood[-1] not in order


async def test_no_more_of_a_clients_jobs_run_than_its_policy_allows(bus: Bus, routers: Routers) -> None:
    async with fake_worker(bus, slots=4) as worker, routers.one(bus) as router:
        await heard(router, 1)
        for n in range(4):
            await submit(bus, JobKey("capped", f"job_{n}"), max_running=2)
        await submit(bus, JobKey("free", "job_0"))
        await eventually(lambda: len(worker.running) == 3)
        assert len(router.queue) == 2
        await worker.finish(next(run for run in worker.running if run[0].client == "capped"))
        await eventually(lambda: len(router.queue) == 1 and len(worker.running) == 3)


async def test_a_slot_that_another_router_gave_is_counted_with_its_times(bus: Bus, routers: Routers) -> None:
    """After a take-over: predictions come from the binding, and the client's limit holds."""
    async with fake_worker(bus, slots=2) as worker, routers.one(bus) as first:
        await heard(first, 1)
        key = await submit(bus, JobKey("capped", "job_0"), max_running=1, priority=Priority.BATCH)
        await eventually(lambda: worker.run_of(key))
        async with routers.one(bus) as second:
            await eventually(lambda: any(view.holds for view in second.fleet.nodes.values()))
            holds: list[Hold] = [h for view in second.fleet.nodes.values() for h in view.holds.values()]
            assert holds[0].ends_at > 0
            await submit(bus, JobKey("capped", "job_1"), max_running=1)
            await eventually(lambda: len(second.queue) == 1)
            assert list(second.queue.heads()) == []


def test_every_field_of_a_place_is_sent() -> None:
    assert {field.name for field in msgspec.structs.fields(PlaceAnswer)} == {"position", "start_s", "reason"}
