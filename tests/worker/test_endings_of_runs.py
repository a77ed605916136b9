"""How runs end that do not simply succeed: stopped, fenced, expired, given back, or with nowhere to store their end."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from nats.aio.msg import Msg

from libs.common.bus.failures import Full
from libs.common.contracts.control import RunStatus
from libs.common.contracts.faults import Code
from libs.common.contracts.nodes import Phase
from libs.common.states import JobState
from libs.ollama_sim.faults import Fault as NodeFault
from libs.ollama_sim.faults import FaultKind
from libs.ollama_sim.server import SimServer
from services.worker import main, output, presence, run
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually
from tests.worker.conftest import ChatNode
from tests.worker.running import Gate, World, at_done, events_of, text_of

CHAT = "/api/chat"


def end_of(body: bytes) -> Any:
    return events_of(body)[-1].end


# -- cancelled -------------------------------------------------------------------------------------------------------------


async def test_a_cancel_before_the_order_counts_as_the_run(around: World, sim: SimServer) -> None:
    """Messages overtake each other: who asks for that run later hears that it ended (DESIGN §3)."""
    async with around.worker(sim.url) as worker:
        job = await around.submit(messages=[])
        order = await around.bind(worker, job)
        assert not (await around.cancel(worker, order)).known
        assert (await around.ask(worker, order)).status is RunStatus.FINISHED
        other = await around.run(worker)
        await around.done(other)
    assert sim.state.requests[CHAT] == 1


async def test_a_cancel_while_the_records_are_read_never_reaches_the_node(
    around: World, sim: SimServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the slot held for a node that has not heard of the run."""
    monkeypatch.setattr(run, "LET_GO_WAITING_S", 60)
    async with around.worker(sim.url) as worker:
        gate = Gate()
        job = await around.submit(messages=[{"role": "user", "content": "Hi"}])
        order = await around.bind(worker, job)
        reads = {order.revision, order.submitted}

        async def hold(sequence: int) -> None:
            if sequence in reads:
                await gate.wait()

        worker.bus.before_read = hold
        await around.ask(worker, order)
        await gate.reached.wait()
        assert (await around.cancel(worker, order)).known
        gate.opened.set()
        facts, _ = await around.done(job)
        await around.freed(job)
    assert facts.state is JobState.CANCELLED
    assert CHAT not in sim.state.requests


HOLD_S = {"loading": 0.5, "prefill": 0.5, "decoding": 0.3}


@pytest.mark.parametrize("phase", list(HOLD_S))
async def test_a_cancelled_run_leaves_the_node_and_holds_its_slot_until_the_node_let_go(
    around: World, start_sim: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """The engine goes on for a while after its client left; a new run would only wait inside it (ollama-facts.md §2.6)."""
    monkeypatch.setattr(run, "LET_GO_WAITING_S", 0.5)
    monkeypatch.setattr(run, "LET_GO_DECODING_S", 0.3)
    node: dict[str, dict[str, Any]] = {
        "loading": {"load_overhead_s": 600},
        "prefill": {"load_overhead_s": 0, "disk_gbps": 1000, "prefill_tps": 0.01},
        "decoding": {"load_overhead_s": 0, "disk_gbps": 1000, "decode_tps": 20},
    }
    sim: SimServer = await start_sim(**node[phase])
    async with around.worker(sim.url) as worker:
        job = await around.run(worker, "[[tokens=400]]")
        if phase == "decoding":
            await sim.until(lambda state: state.tokens > 2)
        elif phase == "prefill":
            await sim.until(lambda state: state.loads == 1 and any(r.slots[0].is_busy for r in state.runners))
        else:
            await sim.until(lambda state: state.placing is not None)
        assert job.order
        assert (await around.cancel(worker, job.order)).known
        await sim.until(lambda state: state.in_flight == 0)
        left_at = time.monotonic()
        await around.freed(job)
        assert around.freed_at(job) - left_at > HOLD_S[phase] * 0.8
        facts, body = await around.done(job)
        assert (await around.ask(worker, job.order)).status is RunStatus.FINISHED
    assert sim.state.cancelled == 1
    assert facts.state is JobState.CANCELLED
    assert facts.fault is not None
    assert (facts.fault.code, facts.fault.message) == (Code.CANCELLED, "the client left")
    assert end_of(body).state is JobState.CANCELLED
    assert (text_of(body) != "") is (phase == "decoding")


async def test_cancelling_a_real_answer_halfway_keeps_what_was_said(around: World, chat_node: ChatNode) -> None:
    async with around.worker(chat_node.url) as worker:
        job = await around.run(worker, "Count to a thousand.", model=chat_node.model, options={"num_predict": 1000})
        await eventually(lambda: len(events_of(around.shown(job))) > 3, within=60)
        assert job.order
        await around.cancel(worker, job.order)
        facts, body = await around.done(job)
        await around.freed(job)
        await eventually(lambda: around.shown(job) == body)
    assert facts.state is JobState.CANCELLED
    assert 3 < len(events_of(body)) < 1000


# -- out of time -----------------------------------------------------------------------------------------------------------


async def test_a_run_that_outlives_its_deadline_expires_and_leaves_the_node(around: World, sim: SimServer) -> None:
    """The worker enforces it by itself (DESIGN §3)."""
    sim.set_faults(NodeFault(FaultKind.HANG, after_tokens=3))
    async with around.worker(sim.url) as worker:
        job = await around.run(worker, "[[tokens=9]]", bind={"seconds_left": 0.3})
        facts, body = await around.done(job)
        await sim.until(lambda state: state.in_flight == 0)
    assert facts.state is JobState.EXPIRED
    assert facts.fault is not None
    assert facts.fault.code is Code.DEADLINE_EXCEEDED
    assert len(events_of(body)) == 4


async def test_a_run_without_time_left_never_reaches_the_node(around: World, sim: SimServer) -> None:
    async with around.worker(sim.url) as worker:
        job = await around.run(worker, bind={"seconds_left": 0})
        facts, _ = await around.done(job)
    assert facts.state is JobState.EXPIRED
    assert CHAT not in sim.state.requests


# -- fenced ----------------------------------------------------------------------------------------------------------------


async def test_a_run_whose_job_was_requeued_writes_nothing_and_shows_no_end(around: World, sim: SimServer) -> None:
    """The requeue is the fence: the compare-and-set loses, and the run is over (DESIGN §3)."""
    async with around.worker(sim.url) as worker:
        fenced: list[bool] = []

        async def fence() -> None:
            if not fenced:
                fenced.append(True)
                await around.requeue(job)

        job = await around.submit(messages=[{"role": "user", "content": "[[say=Hello.]]"}])
        order = await around.bind(worker, job)
        worker.bus.before_append = at_done(fence)
        await around.ask(worker, order)
        free = await around.freed(job)
        answer = await around.ask(worker, order)
        newest = await around.journal.newest(job.key)
    assert fenced
    assert not free.given_back
    assert (answer.status, answer.reason) == (RunStatus.FINISHED, "fenced")
    assert newest is not None
    assert not newest.final
    assert all(event.end is None for event in events_of(around.shown(job)))
    assert around.hints == []


async def test_a_fenced_run_leaves_the_node_and_writes_nothing(around: World, sim: SimServer) -> None:
    sim.set_faults(NodeFault(FaultKind.HANG, after_tokens=3))
    async with around.worker(sim.url) as worker:
        job = await around.run(worker, "[[tokens=9]]")
        await eventually(lambda: around.chunks_of(job))
        assert job.order
        await around.cancel(worker, job.order)  # even if a cancel was first
        await around.cancel(worker, job.order, fenced=True)
        free = await around.freed(job)
        await sim.until(lambda state: state.in_flight == 0)
        newest = await around.journal.newest(job.key)
    assert not free.given_back
    assert newest is not None
    assert newest.facts == job.binding


# -- given back ------------------------------------------------------------------------------------------------------------


async def test_what_a_node_broke_off_is_given_back_after_its_last_segment(around: World, sim: SimServer) -> None:
    """The router carries the visible text on: all of it must lie in OUT before it hears of the end (DESIGN §3)."""
    sim.set_faults(NodeFault(FaultKind.CRASH, after_tokens=7))
    async with around.worker(sim.url) as worker:
        job = await around.run(worker, "[[tokens=20]]")
        free = await around.freed(job)
        kept = await around.kept(job)
        assert job.order
        answer = await around.ask(worker, job.order)
        said = [what for what in worker.bus.said if what[1].endswith((".s", ".free"))]
        newest = await around.journal.newest(job.key)
    assert free.given_back
    assert free.fault is not None
    assert free.fault.code is Code.NODE_FAILED
    assert len(events_of(kept)) == 7
    assert kept == around.shown(job)
    assert [what.rpartition(".")[2] for _, what in said] == ["s", "free"]
    assert (answer.status, answer.fault) == (RunStatus.GIVEN_BACK, free.fault)
    assert newest is not None
    assert not newest.final


@pytest.mark.parametrize(
    ("kind", "code", "goes_back"),
    [
        (FaultKind.BUSY, Code.NODE_BUSY, True),
        (FaultKind.LOAD_OOM, Code.NODE_FAILED, True),
        (FaultKind.DEATH, Code.NODE_FAILED, True),
        (FaultKind.HTML, Code.NODE_FAILED, True),
        (FaultKind.OPTION_ERROR, Code.NODE_REJECTED, False),
    ],
)
async def test_who_is_to_blame_decides_whether_the_job_goes_back(
    around: World, sim: SimServer, kind: FaultKind, code: Code, goes_back: bool
) -> None:
    sim.set_faults(NodeFault(kind))
    async with around.worker(sim.url) as worker:
        job = await around.run(worker)
        free = await around.freed(job)
        assert free.given_back is goes_back
        if goes_back:
            assert free.fault is not None
            assert free.fault.code is code
        else:
            facts, _ = await around.done(job)
            assert facts.state is JobState.FAILED
            assert facts.fault is not None
            assert facts.fault.code is code


async def test_an_answer_without_measure_ends(around: World, sim: SimServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_LOG", 500)
    async with around.worker(sim.url) as worker:
        job = await around.run(worker, "[[tokens=2000]]")
        facts, _ = await around.done(job)
        await sim.until(lambda state: state.in_flight == 0)
    assert facts.fault is not None
    assert facts.fault.code is Code.RESULT_TOO_LARGE


# -- nowhere to store the end ----------------------------------------------------------------------------------------------


async def test_while_done_cannot_be_stored_the_run_counts_as_running_and_tries_again(
    around: World, sim: SimServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JOBS full is refused for `done` too; the result is not lost (DESIGN §3)."""
    monkeypatch.setattr(run, "DONE_RETRY_S", 0.05)
    monkeypatch.setattr(presence, "BEAT_S", 0.1)
    full, tries = True, 0

    async def refuse() -> None:
        nonlocal tries
        tries += 1
        if full:
            raise Full("the stream is full")

    async with around.worker(sim.url) as worker:
        worker.bus.before_append = at_done(refuse)
        job = await around.run(worker, "[[say=Hello.]]")
        await eventually(lambda: tries > 3)
        await eventually(lambda: [each.phase for each in around.beat.running] == [Phase.STOPPING])
        assert job.order
        assert (await around.ask(worker, job.order)).status is RunStatus.RUNNING
        assert around.frees == []
        assert all(event.end is None for event in events_of(around.shown(job)))
        full = False
        facts, body = await around.done(job)
        await around.freed(job)
        await eventually(lambda: not around.beat.running)
    assert facts.state is JobState.SUCCEEDED
    assert text_of(body) == "Hello."


async def test_a_result_waits_for_nats_to_come_back(around: World, sim: SimServer, nats: NatsServer) -> None:
    """Killed while the last token is on its way: `done` is written after the restart, once."""
    async with around.worker(sim.url) as worker:
        gate = Gate()
        worker.bus.before_append = at_done(gate.wait)
        job = await around.run(worker, "[[say=Hello.]]")
        await gate.reached.wait()
        await nats.kill()
        gate.opened.set()
        await eventually(lambda: not worker.bus.connected)
        await nats.start()
        facts, body = await around.done(job, within=20)
        assert job.order
        order = job.order

        async def finished() -> bool:
            return (await around.ask(worker, order)).status is RunStatus.FINISHED

        await eventually(finished)
    assert facts.state is JobState.SUCCEEDED
    assert text_of(body) == "Hello."
    assert sim.state.requests[CHAT] == 1


async def test_a_fence_ends_the_waiting_for_room(around: World, sim: SimServer) -> None:
    async def refuse() -> None:
        raise Full("the stream is full")

    async with around.worker(sim.url) as worker:
        refused = asyncio.Event()

        async def refuse_and_tell() -> None:
            refused.set()
            await refuse()

        worker.bus.before_append = at_done(refuse_and_tell)
        job = await around.run(worker)
        await refused.wait()
        assert job.order
        await around.cancel(worker, job.order, fenced=True)
        free = await around.freed(job)
    assert not free.given_back


# -- leaving ---------------------------------------------------------------------------------------------------------------


async def test_a_drain_waits_for_what_runs_and_takes_nothing_new(around: World, sim: SimServer) -> None:
    async with around.worker(sim.url) as worker:
        gate = Gate()
        worker.bus.before_append = at_done(gate.wait)
        job = await around.run(worker)
        await gate.reached.wait()
        draining = asyncio.create_task(worker.drain())
        await eventually(lambda: around.beat.draining)
        late = await around.submit(messages=[])
        answer = await around.ask(worker, await around.bind(worker, late))
        assert (answer.status, answer.reason) == (RunStatus.REFUSED, "draining")
        assert not draining.done()
        gate.opened.set()
        await asyncio.wait_for(draining, 5)
        facts, _ = await around.done(job)
        free = await around.freed(job)
    assert facts.state is JobState.SUCCEEDED
    assert not free.given_back


async def test_a_drain_gives_back_what_outlasts_it_without_a_fault(around: World, sim: SimServer) -> None:
    """Draining is nobody's fault: the router takes the text on and counts no attempt."""
    sim.set_faults(NodeFault(FaultKind.HANG, after_tokens=3))
    async with around.worker(sim.url, drain_grace=0.1) as worker:
        job = await around.run(worker, "[[tokens=9]]")
        await eventually(lambda: len(events_of(around.shown(job))) == 3)
        await asyncio.wait_for(worker.drain(), 5)
        free = await around.freed(job)
        await sim.until(lambda state: state.in_flight == 0)
        kept = await around.kept(job)
    assert free.given_back
    assert free.fault is None
    assert kept == around.shown(job)


async def test_a_drain_in_a_hurry_gives_back_at_once_what_runs(around: World, sim: SimServer) -> None:
    """A second signal: the grace would be minutes, and all of it is kept for whoever goes on."""
    sim.set_faults(NodeFault(FaultKind.HANG, after_tokens=3))
    async with around.worker(sim.url, drain_grace=600) as worker:
        job = await around.run(worker, "[[tokens=9]]")
        await eventually(lambda: len(events_of(around.shown(job))) == 3)
        draining = asyncio.create_task(worker.drain())
        await eventually(lambda: around.beat.draining)
        assert not draining.done()
        worker.hurry()
        await asyncio.wait_for(draining, main.GIVE_BACK_S)
        free = await around.freed(job)
        await sim.until(lambda state: state.in_flight == 0)
        kept = await around.kept(job)
    assert free.given_back
    assert free.fault is None
    assert kept == around.shown(job)


async def test_a_drain_ends_though_the_result_cannot_be_stored(
    around: World, sim: SimServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse() -> None:
        raise Full("the stream is full")

    async with around.worker(sim.url, drain_grace=0.1) as worker:
        worker.bus.before_append = at_done(refuse)
        job = await around.run(worker, "[[say=Hello.]]")
        await asyncio.wait_for(worker.drain(), 5)
        free = await around.freed(job)
        kept = await around.kept(job)
    assert free.given_back
    assert free.fault is None
    assert text_of(kept) == "Hello."


async def test_a_drain_without_nats_waits_for_the_runs_and_ends(
    around: World, sim: SimServer, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "KEEP_SEGMENTS_S", 0.2)
    sim.set_faults(NodeFault(FaultKind.HANG, after_tokens=3))
    async with around.worker(sim.url, drain_grace=0.2) as worker:
        await around.run(worker, "[[tokens=9]]")
        await sim.until(lambda state: state.tokens == 3)
        await nats.kill()
        await asyncio.wait_for(worker.drain(), main.GIVE_BACK_S)
        await sim.until(lambda state: state.in_flight == 0)


async def test_a_worker_that_is_cut_off_from_nats_stops_its_generations(
    around: World, sim: SimServer, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody hears of them, and their jobs are somebody else's by then: no GPU works for nothing (DESIGN §3)."""
    assert main.CUT_OFF_S == 30.0
    monkeypatch.setattr(main, "CUT_OFF_S", 0.3)
    monkeypatch.setattr(presence, "BEAT_S", 0.1)
    monkeypatch.setattr(run, "KEEP_SEGMENTS_S", 0.5)
    sim.set_faults(NodeFault(FaultKind.HANG, after_tokens=3))
    async with around.worker(sim.url) as worker:
        await around.run(worker, "[[tokens=9]]")
        await sim.until(lambda state: state.tokens == 3)
        await nats.kill()
        await sim.until(lambda state: state.in_flight == 0)
        await nats.start()
        await eventually(lambda: not around.beat.running, within=10)


async def test_a_worker_that_ends_without_a_drain_leaves_the_node(around: World, sim: SimServer) -> None:
    """Replaced, or failed: its process may take seconds to go, its generations must not."""
    sim.set_faults(NodeFault(FaultKind.HANG, after_tokens=3))
    async with around.worker(sim.url) as worker:
        job = await around.run(worker, "[[tokens=9]]")
        await sim.until(lambda state: state.tokens == 3)
    await sim.until(lambda state: state.in_flight == 0)
    newest = await around.journal.newest(job.key)
    assert newest is not None
    assert not newest.final


# -- output ----------------------------------------------------------------------------------------------------------------


async def test_a_last_segment_beside_a_beat_leaves_nothing_unkept(
    around: World, sim: SimServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The beat has the same bytes on their way when the run is given back: counted twice, others would count as acked."""
    monkeypatch.setattr(output, "BEAT_S", 0.05)
    monkeypatch.setattr(output, "MAX_CHUNK", 20)
    sim.set_faults(NodeFault(FaultKind.HANG, after_tokens=3))
    async with around.worker(sim.url, drain_grace=0.05) as worker:
        beats_first, last_first, beats_second = gates = [Gate(), Gate(), Gate()]
        waiting = list(gates)

        async def hold(subject: str) -> None:
            if subject.endswith(".s") and waiting:
                await waiting.pop(0).wait()

        worker.bus.before_append = hold
        job = await around.run(worker, "[[tokens=9]]")
        await beats_first.reached.wait()
        draining = asyncio.create_task(worker.drain())
        await last_first.reached.wait()
        beats_first.opened.set()
        await beats_second.reached.wait()  # and never gets any further
        last_first.opened.set()
        await asyncio.wait_for(draining, 5)
        await around.freed(job)
        assert len(around.shown(job)) > 40
        assert await around.kept(job) == around.shown(job)


async def test_a_task_that_is_cancelled_as_its_ack_arrives_ends(around: World) -> None:
    """Before Python 3.12 wait_for swallows that cancellation: beats of ended runs went on for ever."""
    entered = asyncio.Event()
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def request(*_: Any, **__: Any) -> Any:
        entered.set()
        return await asyncio.wait_for(answered, 5)  # as nats-py does

    real = around.bus._client.request
    around.bus._client.request = request  # type: ignore[method-assign]  # the seam is nats-py itself
    try:
        for ask in (around.bus.append("x"), around.bus.request("x")):
            entered.clear()
            answered = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(ask)
            await entered.wait()
            await asyncio.sleep(0)
            answered.set_result(Msg(_client=around.bus._client, data=b'{"stream":"JOBS","seq":1}'))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    finally:
        around.bus._client.request = real  # type: ignore[method-assign]
