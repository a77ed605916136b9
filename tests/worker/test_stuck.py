"""A node that falls silent: the job goes back, the node is marked, watched, and comes back (ollama-facts.md §2.5, §3.4)."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from libs.common.contracts.events import Event, line
from libs.common.contracts.faults import Code
from libs.common.contracts.nodes import Heartbeat
from libs.common.contracts.requests import Kind
from libs.common.states import JobState
from libs.ollama_sim.faults import Fault as NodeFault
from libs.ollama_sim.faults import FaultKind
from libs.ollama_sim.server import SimServer
from services.worker import canary, health, patience, presence, run
from tests.support.waiting import eventually
from tests.worker.running import Job, World, events_of, text_of

GENERATE = "/api/generate"
CHAT = "/api/chat"
WARM: dict[str, Any] = {"load_overhead_s": 0.0, "disk_gbps": 1000.0, "decode_tps": 1000.0, "slots": 2}


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every limit is still of its own length, so that a test sees which one ended the waiting."""
    for name, value in {
        "LOAD_S": 1.2,
        "FIRST_S": 0.4,
        "NEIGHBOUR_S": 0.0,
        "ANSWER_S": 0.3,
        "QUIET_ANSWER_S": 0.9,
        "RENDER_S": 0.35,
        "TELLING_S": 0.0,
    }.items():
        monkeypatch.setattr(patience, name, value)
    monkeypatch.setattr(run, "LOOK_S", 0.02)
    monkeypatch.setattr(run, "LET_GO_WAITING_S", 0.05)
    monkeypatch.setattr(canary, "LOOK_S", 0.02)
    monkeypatch.setattr(health, "AGAIN_S", 0.3)
    monkeypatch.setattr(presence, "BEAT_S", 0.1)


async def warm(around: World, worker: Any, *models: str) -> None:
    for model in models or ("chat",):
        job = await around.run(worker, "[[tokens=1]]", model=model)
        assert (await around.done(job))[0].state is JobState.SUCCEEDED
    await eventually(lambda: len(around.beat.loaded) == len(models or ("chat",)))


async def given_back(around: World, job: Job) -> str:
    free = await around.freed(job)
    assert free.given_back
    assert free.fault is not None
    assert free.fault.code is Code.NODE_FAILED
    return free.fault.message


async def beats(around: World, is_so: Callable[[Heartbeat], Any]) -> Heartbeat:
    await eventually(lambda: is_so(around.beat))
    return around.beat


async def ever(around: World, is_so: Callable[[Heartbeat], Any]) -> Heartbeat:
    """The first one of which it is so, also when it is over already."""

    def found() -> list[Heartbeat]:
        return [beat for _, beat in around.beats if is_so(beat)]

    await eventually(found)
    return found()[0]


@pytest.mark.parametrize(
    ("after", "words"), [(0, "before the first token (0.4 s)"), (3, "in the middle of the answer (0.3 s)")]
)
async def test_a_silent_node_is_left_marked_watched_and_comes_back(
    around: World, start_sim: Callable[..., Any], after: int, words: str
) -> None:
    """A wedged engine says nothing for ever, and blocks everybody behind it until its client goes."""
    sim: SimServer = await start_sim(**WARM)
    async with around.worker(sim.url) as worker:
        await warm(around, worker)
        sim.set_faults(
            NodeFault(FaultKind.HANG, after_tokens=after, count=0),
            NodeFault(
                FaultKind.ACCEPT_HANG, route=GENERATE, count=0
            ),  # or the first question of all would find it well
        )
        job = await around.run(worker, "a secret [[tokens=9]]")
        assert words in await given_back(around, job)
        beat = await ever(around, lambda beat: beat.suspect_models and not beat.reachable)
        assert (beat.suspect_models, beat.cold_stuck) == (("chat:latest",), False)
        assert "chat:latest fell silent" in beat.problem
        assert worker.running.checks["node"]() is not None
        # Three questions in vain, one at a time:
        await sim.until(lambda state: state.requests.get(GENERATE, 0) >= 3)
        assert sim.state.in_flight <= 1
        sim.set_faults()
        beat = await beats(around, lambda beat: beat.reachable)
        assert (beat.suspect_models, beat.problem) == ((), "")
        assert worker.running.checks["node"]() is None
        await warm(around, worker)
        asked = sim.state.requests[GENERATE]
    assert sim.state.requests[GENERATE] == asked, "who answers is left alone"
    assert all(seen.option_keys == ("num_predict",) for seen in sim.state.last_requests if seen.route == GENERATE)


async def test_a_run_that_was_given_up_is_marked_before_its_slot_is_free(
    around: World, start_sim: Callable[..., Any]
) -> None:
    sim: SimServer = await start_sim(**WARM)
    async with around.worker(sim.url) as worker:
        await warm(around, worker)
        sim.set_faults(
            NodeFault(FaultKind.HANG, after_tokens=3, count=0),
            NodeFault(FaultKind.ACCEPT_HANG, route=GENERATE, count=0),
        )
        job = await around.run(worker, "[[tokens=9]]")
        await eventually(lambda: around.beat.running)
        heard = len(around.beats)
        await around.freed(job)
        await beats(around, lambda beat: not beat.running)
        assert [beat for _, beat in around.beats[heard:] if not beat.running and not beat.suspect_models] == []


async def test_a_load_may_take_minutes_and_a_prompt_its_time(around: World, start_sim: Callable[..., Any]) -> None:
    """Longer than any other limit here, and neither is silence of a stuck node (ollama-facts.md §2.5)."""
    sim = await start_sim(load_overhead_s=0.8, disk_gbps=1000, decode_tps=1000, prefill_tps=20)
    async with around.worker(sim.url) as worker:
        job = await around.submit(
            messages=[{"role": "user", "content": "x" * 40 + "[[tokens=2]]"}], estimated_tokens=40
        )
        await around.ask(worker, await around.bind(worker, job))
        assert (await around.done(job, within=10))[0].state is JobState.SUCCEEDED
        assert around.beat.reachable


async def test_tools_may_be_silent_for_longer(around: World, start_sim: Callable[..., Any]) -> None:
    """A native tool call comes at once when it is whole (ollama-facts.md §1.3)."""
    sim = await start_sim(**WARM)
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    sim.set_faults(NodeFault(FaultKind.TRICKLE, after_tokens=2, seconds=0.5, count=0))
    async with around.worker(sim.url) as worker:
        job = await around.run(worker, "[[tokens=4]]", tools=[tool])
        assert (await around.done(job))[0].state is JobState.SUCCEEDED
        other = await around.run(worker, "[[tokens=4]]")
        assert "in the middle of the answer" in await given_back(around, other)


async def test_a_larger_patience_waits_for_longer(around: World, start_sim: Callable[..., Any]) -> None:
    sim = await start_sim(**WARM)
    sim.set_faults(NodeFault(FaultKind.TRICKLE, after_tokens=2, seconds=0.5, count=0))
    async with around.worker(sim.url, patience=5.0) as worker:
        job = await around.run(worker, "[[tokens=3]]")
        assert (await around.done(job))[0].state is JobState.SUCCEEDED


async def test_what_waits_on_our_side_is_no_silence_of_the_node(
    around: World, start_sim: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = await start_sim(**WARM)
    async with around.worker(sim.url) as worker:
        publish = worker.bus.publish
        slow = {"left": 1}

        async def slowly(subject: str, *args: Any, **more: Any) -> None:
            if subject.endswith(".c") and slow["left"]:
                slow["left"] -= 1
                await run.asyncio.sleep(2 * patience.ANSWER_S)
            await publish(subject, *args, **more)

        monkeypatch.setattr(worker.bus, "publish", slowly)
        job = await around.run(worker, "[[tokens=5]]")
        assert (await around.done(job))[0].state is JobState.SUCCEEDED
        assert not slow["left"]


async def test_only_the_silent_model_is_closed_when_another_one_answers(
    around: World, start_sim: Callable[..., Any]
) -> None:
    """Nobody has to be lucky: after a vain question to the silent model one that is in memory is asked, too."""
    sim: SimServer = await start_sim(**WARM)
    async with around.worker(sim.url, slots=2) as worker:
        await warm(around, worker, "chat", "thinker")
        sim.set_faults(NodeFault(FaultKind.HANG, model="chat", after_tokens=0, count=0))
        job = await around.run(worker)
        await given_back(around, job)
        await beats(around, lambda beat: not beat.reachable)
        beat = await beats(around, lambda beat: beat.reachable)
        assert beat.suspect_models == ("chat:latest",)
        assert beat.problem
        other = await around.run(worker, "[[tokens=2]]", model="thinker")
        assert (await around.done(other))[0].state is JobState.SUCCEEDED
        assert around.beat.suspect_models
        sim.set_faults()
        await beats(around, lambda beat: not beat.suspect_models)
    assert sim.state.loads == 2, "no question made Ollama load a model anew"


async def test_a_load_that_never_comes_closes_the_node_to_cold_work_until_one_works(
    around: World, start_sim: Callable[..., Any]
) -> None:
    """#17408: cold loads hang for hours while what is in memory serves and everything looks fine."""
    sim: SimServer = await start_sim(**WARM)
    async with around.worker(sim.url, slots=2) as worker:
        await warm(around, worker)
        sim.set_faults(NodeFault(FaultKind.STUCK_LOAD, count=0))
        job = await around.run(worker, model="thinker")
        assert "did not bring the model into memory (1.2 s)" in await given_back(around, job)
        beat = await beats(around, lambda beat: beat.cold_stuck)
        assert (beat.reachable, beat.suspect_models) == (True, ())
        assert "thinker:latest never came" in beat.problem
        await sim.until(lambda state: state.placing is not None and state.requests.get(GENERATE))  # the canary
        await warm(around, worker)
        assert around.beat.cold_stuck
        sim.set_faults()
        beat = await beats(around, lambda beat: not beat.cold_stuck)
        assert beat.problem == ""


async def left_in_silence(around: World, sim: SimServer, worker: Any, by: str, **fields: Any) -> None:
    """A run that its client does not wait for: it has so little time, or is cancelled."""
    job = await around.run(worker, "[[tokens=9]]", bind={"seconds_left": 0.1 if by == "deadline" else 60.0}, **fields)
    if by == "cancel":
        await sim.until(lambda state: state.in_flight)
        assert job.order
        await around.cancel(worker, job.order)
    assert (await around.done(job))[0].state is (JobState.EXPIRED if by == "deadline" else JobState.CANCELLED)
    await around.freed(job)


@pytest.mark.parametrize("by", ["deadline", "cancel"])
async def test_a_node_that_no_client_waits_for_long_enough_is_found_stuck_too(
    around: World, start_sim: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Each job ends before its patience does, so none of them is given up; the worker's own question is, beside them."""
    monkeypatch.setattr(patience, "FIRST_S", 1.0)
    sim: SimServer = await start_sim(**WARM)
    async with around.worker(sim.url, slots=2) as worker:
        await warm(around, worker)
        sim.set_faults(NodeFault(FaultKind.HANG, after_tokens=0, count=0))

        async def found() -> bool:
            await left_in_silence(around, sim, worker, by)
            return any(beat.suspect_models for _, beat in around.beats)

        await eventually(found)
        beat = await ever(around, lambda beat: beat.suspect_models)
        assert (beat.reachable, beat.suspect_models) == (False, ("chat:latest",))
        assert "fell silent before its first token" in beat.problem
        sim.set_faults()
        await beats(around, lambda beat: beat.reachable)
        await warm(around, worker)


async def test_a_doubted_node_that_answers_was_never_closed(
    around: World, start_sim: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients without patience before a node that reads slowly: it is asked, is busy, is asked again, and nobody notices."""
    monkeypatch.setattr(patience, "FIRST_S", 1.0)
    sim: SimServer = await start_sim(**WARM)
    async with around.worker(sim.url, slots=2) as worker:
        await warm(around, worker)
        sim.set_faults(NodeFault(FaultKind.ACCEPT_HANG, count=0, route=CHAT), NodeFault(FaultKind.BUSY, route=GENERATE))

        async def asked_twice() -> bool:
            await left_in_silence(around, sim, worker, "deadline")
            return sim.state.requests.get(GENERATE, 0) >= 2

        await eventually(asked_twice)
        sim.set_faults()
        await warm(around, worker)
        assert not any(beat.suspect_models or beat.cold_stuck for _, beat in around.beats)
    assert sim.state.loads == 1


async def test_who_leaves_at_once_and_who_does_not_wait_for_a_load_raise_no_doubt(
    around: World, start_sim: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "LOAD_S", 60.0)
    sim: SimServer = await start_sim(**WARM)
    async with around.worker(sim.url, slots=2) as worker:
        await warm(around, worker)
        sim.set_faults(NodeFault(FaultKind.STUCK_LOAD, model="thinker", count=5))
        for _ in range(5):
            await left_in_silence(around, sim, worker, "deadline", model="thinker")
        monkeypatch.setattr(patience, "TELLING_S", 30.0)
        sim.set_faults(NodeFault(FaultKind.HANG, after_tokens=0, count=5))
        for _ in range(5):
            await left_in_silence(around, sim, worker, "deadline")
        await warm(around, worker)
        assert not any(beat.suspect_models or beat.cold_stuck for _, beat in around.beats)
    assert GENERATE not in sim.state.requests


async def test_a_model_for_embeddings_is_asked_for_one(around: World, start_sim: Callable[..., Any]) -> None:
    sim: SimServer = await start_sim(**WARM)
    async with around.worker(sim.url) as worker:
        sim.set_faults(NodeFault(FaultKind.STUCK_LOAD, count=1))
        job = await around.submit(Kind.EMBED, model="embed", input="a secret")
        await around.ask(worker, await around.bind(worker, job))
        await given_back(around, job)
        await beats(around, lambda beat: beat.cold_stuck)
        await beats(around, lambda beat: not beat.cold_stuck)
    assert GENERATE not in sim.state.requests


@pytest.mark.parametrize("kind", [FaultKind.BUSY, FaultKind.CRASH, FaultKind.OPTION_ERROR, FaultKind.EOF])
async def test_busy_and_broken_are_not_stuck(around: World, sim: SimServer, kind: FaultKind) -> None:
    async with around.worker(sim.url) as worker:
        await warm(around, worker)
        sim.set_faults(NodeFault(kind, count=1))
        job = await around.run(worker)
        await around.freed(job)
        again = await around.run(worker)
        await around.done(again)
        assert not any(beat.suspect_models or beat.cold_stuck for _, beat in around.beats)
    assert GENERATE not in sim.state.requests


async def test_a_busy_node_does_not_answer_for_a_stuck_model(around: World, start_sim: Callable[..., Any]) -> None:
    sim: SimServer = await start_sim(**WARM)
    async with around.worker(sim.url) as worker:
        await warm(around, worker)
        sim.set_faults(
            NodeFault(FaultKind.HANG, after_tokens=1), NodeFault(FaultKind.BUSY, request=1, count=2, route=GENERATE)
        )
        job = await around.run(worker)
        await given_back(around, job)
        await beats(around, lambda beat: not beat.reachable)
        await beats(around, lambda beat: beat.reachable)
    assert sim.state.requests[GENERATE] == 3


async def test_a_node_whose_ollama_was_restarted_is_looked_at_at_once(
    around: World, start_sim: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "AGAIN_S", 60.0)
    sim: SimServer = await start_sim(**WARM)
    async with around.worker(sim.url) as worker:
        await warm(around, worker)
        sim.set_faults(NodeFault(FaultKind.HANG, after_tokens=0, count=0))
        job = await around.run(worker)
        await given_back(around, job)
        await sim.until(lambda state: state.requests.get(GENERATE) and state.in_flight == 0)
        sim.set_faults(*(NodeFault(FaultKind.HTML, route=path) for path in ("/api/tags", "/api/ps")))
        await beats(around, lambda beat: "Ollama" in beat.problem)
        await beats(around, lambda beat: beat.reachable)


# -- going on with another node's answer -----------------------------------------------------------------------------------

SHOWN = line(Event(text="It began")) + line(Event(text=" well"))


async def test_a_node_that_does_not_say_how_it_renders_a_prompt_is_left(
    around: World, start_sim: Callable[..., Any]
) -> None:
    sim: SimServer = await start_sim(**WARM)
    async with around.worker(sim.url) as worker:
        await warm(around, worker)
        sim.set_faults(NodeFault(FaultKind.ACCEPT_HANG, route=CHAT, count=0))
        job = await around.run(worker, bind={"carried": SHOWN})
        assert "how it renders the prompt (0.35 s)" in await given_back(around, job)
        await sim.until(lambda state: state.in_flight == 0)
        assert (await around.kept(job)) == b"", "what was shown is the binding's, and nothing came"


@pytest.mark.parametrize("hangs", [FaultKind.ACCEPT_HANG, FaultKind.STUCK_LOAD, FaultKind.HANG])
async def test_a_cancel_while_an_answer_is_continued_stops_the_node_and_keeps_what_was_shown(
    around: World, start_sim: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, hangs: FaultKind
) -> None:
    """While the node is asked how it renders the prompt, loads for that, or reads it."""
    for name in ("LOAD_S", "FIRST_S", "RENDER_S"):
        monkeypatch.setattr(patience, name, 60.0)
    monkeypatch.setattr(run, "LET_GO_WAITING_S", 0.3)
    sim: SimServer = await start_sim(**WARM)
    async with around.worker(sim.url) as worker:
        sim.set_faults(NodeFault(hangs, count=0))
        job = await around.run(worker, "[[tokens=9]]", bind={"carried": SHOWN})
        await sim.until(lambda state: state.requests.get(CHAT, 0) == (2 if hangs is FaultKind.HANG else 1))
        assert job.order
        assert (await around.cancel(worker, job.order)).known
        await sim.until(lambda state: state.in_flight == 0)
        left_at = time.monotonic()
        facts, body = await around.done(job)
        await around.freed(job)
        assert around.freed_at(job) - left_at > 0.2
        assert facts.state is JobState.CANCELLED
        assert body.startswith(SHOWN)
        assert text_of(body) == "It began well"
        assert len(events_of(body)) == 3
        assert not around.beat.suspect_models


# -- cancels -----------------------------------------------------------------------------------------------------------------


async def test_a_cancel_while_the_canary_waits_ends_the_run_and_not_the_watch(
    around: World, start_sim: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sim: SimServer = await start_sim(**{**WARM, "decode_tps": 20})
    async with around.worker(sim.url, slots=2) as worker:
        await warm(around, worker, "chat", "thinker")
        sim.set_faults(NodeFault(FaultKind.HANG, model="chat", after_tokens=0, count=0))
        await given_back(around, await around.run(worker))
        await beats(around, lambda beat: beat.reachable and beat.suspect_models)
        monkeypatch.setattr(patience, "FIRST_S", 60.0)
        asked = sim.state.requests[GENERATE]
        await sim.until(lambda state: state.requests[GENERATE] > asked and state.in_flight == 1)
        job = await around.run(worker, "[[tokens=400]]", model="thinker")
        await eventually(lambda: around.shown(job))
        assert job.order
        await around.cancel(worker, job.order)
        facts, body = await around.done(job)
        await around.freed(job)
        await eventually(lambda: around.shown(job) == body)
        assert facts.state is JobState.CANCELLED
        assert sim.state.in_flight == 1, "the question is still being asked"
        assert around.beat.suspect_models == ("chat:latest",)
    await sim.until(lambda state: state.in_flight == 0)


async def test_a_cancelled_embedding_leaves_the_node(around: World, start_sim: Callable[..., Any]) -> None:
    """Nothing of it is a stream: it is closed all the same."""
    sim: SimServer = await start_sim(**WARM)
    sim.set_faults(NodeFault(FaultKind.STUCK_LOAD, count=0))
    async with around.worker(sim.url) as worker:
        job = await around.submit(Kind.EMBED, model="embed", input="a")
        order = await around.bind(worker, job)
        await around.ask(worker, order)
        await sim.until(lambda state: state.placing is not None)
        assert (await around.cancel(worker, order)).known
        facts, body = await around.done(job)
        await around.freed(job)
        assert facts.state is JobState.CANCELLED
        assert [event.end is not None for event in events_of(body)] == [True]
    assert sim.state.in_flight == 0
    assert sim.state.cancelled == 1
