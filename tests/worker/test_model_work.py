"""Loads, unloads and pulls that a worker is asked for, and room made before a run."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from libs.common.contracts import subjects
from libs.common.contracts.codec import encode
from libs.common.contracts.control import ModelAnswer, ModelOp, ModelOrder, ModelWork, RunStatus, decode_model_answer
from libs.common.states import JobState
from libs.ollama_sim.models import parse_models
from libs.ollama_sim.server import SimServer
from services.worker import model_work, presence
from tests.support.waiting import eventually
from tests.worker.running import NODE, Worker, World, text_of

StartSim = Callable[..., Any]
SLOW: dict[str, Any] = {"decode_tps": 50, "load_overhead_s": 0.05, "disk_gbps": 1000}


async def ask(around: World, worker: Worker, op: ModelOp, model: str, **more: Any) -> ModelAnswer:
    order = ModelOrder(op=op, model=model, **more)
    return decode_model_answer(await around.bus.request(subjects.worker(NODE, worker.boot, "model"), encode(order)))


async def ended(around: World, worker: Worker, op: ModelOp, model: str, **more: Any) -> ModelAnswer:
    """Asked again until it has ended."""
    answers: list[ModelAnswer] = []

    async def over() -> bool:
        answers.append(await ask(around, worker, op, model, **more))
        return answers[-1].state is not ModelWork.RUNNING

    await eventually(over)
    return answers[-1]


def loaded(around: World) -> dict[str, int]:
    return {model.name: model.context_length for model in around.beat.loaded}


async def test_a_model_is_loaded_with_what_was_asked_for_and_unloaded_again(around: World, sim: SimServer) -> None:
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        done = await ended(around, worker, ModelOp.LOAD, "chat", keep_alive=-1, num_ctx=8192, op_id="a")
        assert (done.state, done.status) == (ModelWork.DONE, "loaded")
        await eventually(lambda: loaded(around) == {"chat:latest": 8192})
        assert around.beat.loaded[0].expires_at > "2100"
        done = await ended(around, worker, ModelOp.UNLOAD, "CHAT:latest", op_id="b")
        assert (done.state, done.status) == (ModelWork.DONE, "unloaded")
        await eventually(lambda: not around.beat.loaded)


async def test_a_load_says_how_long_it_took_unless_the_model_was_there_or_another_one_came_first(
    around: World, start_sim: StartSim
) -> None:
    sim = await start_sim(load_overhead_s=0.5, disk_gbps=1000)
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        assert 0.5 <= (await ended(around, worker, ModelOp.LOAD, "chat", op_id="a")).load_s < 100
        assert (await ended(around, worker, ModelOp.LOAD, "chat", op_id="b")).load_s == 0
        await ended(around, worker, ModelOp.UNLOAD, "chat", op_id="c")
        await asyncio.gather(*(ask(around, worker, ModelOp.LOAD, model, op_id="d") for model in ("embed", "chat")))
        assert (await ended(around, worker, ModelOp.LOAD, "chat", op_id="d")).load_s == 0


async def test_a_load_without_a_wish_for_a_context_keeps_the_one_in_memory(around: World, sim: SimServer) -> None:
    """Another num_ctx would be a load anew."""
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        await ended(around, worker, ModelOp.LOAD, "chat", num_ctx=8192, op_id="a")
        await eventually(lambda: loaded(around) == {"chat:latest": 8192})
        await ended(around, worker, ModelOp.LOAD, "chat", keep_alive=-1, op_id="b")
        await eventually(lambda: around.beat.loaded[0].expires_at > "2100")
        assert loaded(around) == {"chat:latest": 8192}
        assert sim.state.loads == 1


async def test_an_embedding_model_is_loaded_by_its_own_route(around: World, sim: SimServer) -> None:
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        assert (await ended(around, worker, ModelOp.LOAD, "embed", op_id="a")).status == "loaded"
        await eventually(lambda: "embed:latest" in loaded(around))
        assert (await ended(around, worker, ModelOp.UNLOAD, "embed", op_id="b")).status == "unloaded"
        await eventually(lambda: not around.beat.loaded)


async def test_a_pull_tells_how_far_it_is_and_the_next_heartbeat_has_the_model(
    around: World, start_sim: StartSim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "TAGS_EVERY_S", 3600.0)  # so it was not found by looking again
    sim = await start_sim(disk_gbps=2)  # a simulated pull is 2 GB: one second
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        seen: set[tuple[int, int]] = set()

        async def over() -> bool:
            answer = await ask(around, worker, ModelOp.PULL, "new:1b", op_id="a")
            assert answer.state is not ModelWork.FAILED, answer
            seen.add((answer.completed, answer.total))
            return answer.state is ModelWork.DONE

        await eventually(over)
        await eventually(lambda: "new:1b" in {model.name for model in around.beat.models})
        assert len(seen) > 3
        assert max(seen) == (2 * 10**9, 2 * 10**9)


async def test_a_refusal_is_ollamas_own_sentence(around: World, sim: SimServer) -> None:
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        for op, said in ((ModelOp.LOAD, "not found"), (ModelOp.UNLOAD, "not found")):
            answer = await ended(around, worker, op, "nothing:1b", op_id="a")
            assert answer.state is ModelWork.FAILED
            assert answer.status.startswith("the node's Ollama says: ")
            assert said in answer.status
        answer = await ended(around, worker, ModelOp.PULL, "no-such.example/a/b:1", op_id="a")
        assert answer.state is ModelWork.FAILED, "the error comes as a line of a 200"
        assert "pull model manifest" in answer.status


async def test_a_node_that_is_away_is_said_to_be(around: World, start_sim: StartSim) -> None:
    async with around.worker("http://127.0.0.1:9") as worker:
        answer = await ended(around, worker, ModelOp.LOAD, "chat", op_id="a")
    assert (answer.state, answer.status) == (ModelWork.FAILED, "the node's Ollama cannot be reached")


async def test_who_asks_again_joins_and_who_asks_anew_begins_anew(around: World, start_sim: StartSim) -> None:
    sim = await start_sim(disk_gbps=2)
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        first, second = await asyncio.gather(
            ended(around, worker, ModelOp.PULL, "new:1b", op_id="a"),
            ended(around, worker, ModelOp.PULL, "NEW:1b", op_id="b"),
        )
        assert first.state is second.state is ModelWork.DONE
        pulls = sim.state.requests["/api/pull"]
        assert pulls == 1
        for op_id in ("a", "b"):
            assert (await ask(around, worker, ModelOp.PULL, "new:1b", op_id=op_id)).state is ModelWork.DONE
        assert sim.state.requests["/api/pull"] == 1
        await ended(around, worker, ModelOp.PULL, "new:1b", op_id="c")
        assert sim.state.requests["/api/pull"] == 2


async def test_an_unnamed_order_after_the_opposite_one_is_not_taken_for_done(around: World, sim: SimServer) -> None:
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        await ended(around, worker, ModelOp.LOAD, "chat")
        await ended(around, worker, ModelOp.UNLOAD, "chat")
        await ended(around, worker, ModelOp.LOAD, "chat")
        assert sim.state.loads == 2


async def test_a_pin_that_joins_a_load_is_not_lost(around: World, start_sim: StartSim) -> None:
    sim = await start_sim(load_overhead_s=1.0, disk_gbps=1000)
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        assert (await ask(around, worker, ModelOp.LOAD, "chat", keep_alive="5m", op_id="a")).state is ModelWork.RUNNING
        done = await ended(around, worker, ModelOp.LOAD, "chat", keep_alive=-1, op_id="b")
        assert done.state is ModelWork.DONE
        await eventually(lambda: around.beat.loaded and around.beat.loaded[0].expires_at > "2100")
        assert sim.state.loads == 1


async def test_what_ended_long_ago_is_forgotten_and_works_are_bounded(
    around: World, start_sim: StartSim, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = await start_sim(disk_gbps=0.001)
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        monkeypatch.setattr(model_work, "MAX_AT_WORK", 3)
        answers = [await ask(around, worker, ModelOp.PULL, f"new:{n}b", op_id="a") for n in range(4)]
        assert [answer.state for answer in answers] == [ModelWork.RUNNING] * 3 + [ModelWork.FAILED]
        assert "3 works" in answers[3].status
        assert (await ask(around, worker, ModelOp.PULL, "new:0b", op_id="b")).state is ModelWork.RUNNING, "it may join"
        # beyond those at once, one waits
        await eventually(lambda: sim.state.requests.get("/api/pull") == model_work.PULLS_AT_ONCE)

        async def waits() -> bool:
            return (await ask(around, worker, ModelOp.PULL, "new:2b", op_id="a")).status == "waits for its turn"

        await eventually(waits)


async def test_memory_of_ended_works_ends(around: World, sim: SimServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        await ended(around, worker, ModelOp.LOAD, "chat", op_id="a")
        requests = sim.state.requests["/api/generate"]
        await ended(around, worker, ModelOp.LOAD, "chat", op_id="a")
        assert sim.state.requests["/api/generate"] == requests
        monkeypatch.setattr(model_work, "REMEMBER_S", 0.0)
        assert (await ask(around, worker, ModelOp.LOAD, "chat", op_id="a")).state is ModelWork.RUNNING
        await eventually(lambda: sim.state.requests["/api/generate"] == requests + 1)


async def test_models_are_worked_on_while_the_node_is_busy_and_an_unload_waits_for_the_answer(
    around: World, start_sim: StartSim
) -> None:
    sim = await start_sim(**SLOW)
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        job = await around.run(worker, "Hi [[tokens=100]]")
        await eventually(lambda: around.shown(job))
        assert (await ended(around, worker, ModelOp.LOAD, "thinker", op_id="a")).state is ModelWork.DONE
        assert around.beat.running, "the run goes on meanwhile"

        async def waits() -> bool:
            answer = await ask(around, worker, ModelOp.UNLOAD, "chat", op_id="a")
            return "waits for the answers" in answer.status

        await eventually(waits)
        done, log = await around.done(job, within=20)
        assert done.state is JobState.SUCCEEDED
        assert (await ended(around, worker, ModelOp.UNLOAD, "chat", op_id="a")).state is ModelWork.DONE
        await eventually(lambda: set(loaded(around)) == {"thinker:latest"})


async def test_an_unload_that_never_comes_says_so(
    around: World, start_sim: StartSim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_work, "UNLOAD_AGAIN_S", 0.3)
    sim = await start_sim(**SLOW)
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        await ended(around, worker, ModelOp.LOAD, "chat", op_id="a")

        monkeypatch.setattr(sim.node.scheduler, "unload", lambda model: None)
        answer = await ended(around, worker, ModelOp.UNLOAD, "chat", op_id="a")
    assert answer.state is ModelWork.FAILED
    assert "somebody else keeps using this Ollama" in answer.status
    assert sim.state.requests["/api/generate"] == 1 + model_work.UNLOAD_TIMES


# -- before a run ------------------------------------------------------------------------------------------------------------


async def test_a_run_unloads_what_the_router_says_before_it_sends_its_request(around: World, sim: SimServer) -> None:
    async with around.worker(sim.url, slots=2) as worker:
        await eventually(lambda: around.beat.models)
        for model in ("thinker", "embed"):
            await ended(around, worker, ModelOp.LOAD, model, op_id="a")
        await eventually(lambda: len(around.beat.loaded) == 2)
        job = await around.run(worker, bind={"evict": ("Thinker", "not-there:1")})
        done, log = await around.done(job)
        assert done.state is JobState.SUCCEEDED
        assert text_of(log)
        await eventually(lambda: set(loaded(around)) == {"chat:latest", "embed:latest"})
        assert sim.state.evictions == 0


async def test_a_model_that_a_run_uses_is_not_unloaded(around: World, start_sim: StartSim) -> None:
    sim = await start_sim(**SLOW)
    async with around.worker(sim.url, slots=2) as worker:
        await eventually(lambda: around.beat.models)
        used = await around.run(worker, "Hi [[tokens=100]]", model="thinker")
        await eventually(lambda: around.shown(used))
        await eventually(lambda: around.beat.loaded)
        job = await around.run(worker, bind={"evict": ("thinker",)})
        await around.done(job)
        assert set(loaded(around)) >= {"thinker:latest"}
        await around.done(used, within=20)
        await eventually(lambda: set(loaded(around)) == {"chat:latest", "thinker:latest"})


async def test_an_unload_that_fails_or_takes_too_long_does_not_stop_the_run(
    around: World, start_sim: StartSim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_work, "ROOM_S", 0.3)
    sim = await start_sim(models=parse_models("chat=2GB,other=2GB"), **SLOW)
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        await ended(around, worker, ModelOp.LOAD, "other", op_id="a")
        await eventually(lambda: around.beat.loaded)
        monkeypatch.setattr(sim.node.scheduler, "unload", lambda model: None)
        job = await around.run(worker, bind={"evict": ("other",)})
        done, _ = await around.done(job)
    assert done.state is JobState.SUCCEEDED


async def test_a_run_that_makes_room_can_be_cancelled(
    around: World, start_sim: StartSim, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = await start_sim(**SLOW)
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        await ended(around, worker, ModelOp.LOAD, "thinker", op_id="a")
        await eventually(lambda: around.beat.loaded)
        monkeypatch.setattr(sim.node.scheduler, "unload", lambda model: None)
        job = await around.submit(messages=[{"role": "user", "content": "Hi"}])
        order = await around.bind(worker, job, evict=("thinker",))
        assert (await around.ask(worker, order)).status is RunStatus.RUNNING
        await eventually(lambda: sim.state.requests["/api/generate"] == 2)
        await around.cancel(worker, order)
        done, _ = await around.done(job)
    assert done.state is JobState.CANCELLED
    assert "/api/chat" not in sim.state.requests
