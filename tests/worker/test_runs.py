"""A worker carries out bindings: once, live, and to an end that is stored before it is shown."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from libs.common.contracts.control import Run, RunStatus
from libs.common.contracts.events import MAX_CHUNK, parse_frame
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.jobs import INLINE_LIMIT, Attempt, PastEpoch
from libs.common.contracts.requests import Kind
from libs.common.folder import digest
from libs.common.states import JobState
from libs.ollama_sim.faults import Fault as NodeFault
from libs.ollama_sim.faults import FaultKind
from libs.ollama_sim.server import SimServer
from services.worker import output, run, runs
from tests.support.waiting import eventually
from tests.worker.conftest import ChatNode
from tests.worker.running import NODE, Gate, World, at_done, events_of, text_of
from tests.worker.sockets import Connection, scripted

CHAT = "/api/chat"
FIFTY = {"options": {"num_predict": 50, "temperature": 0}}


async def test_a_run_that_is_asked_for_again_and_again_is_carried_out_once(around: World, sim: SimServer) -> None:
    """Asking again is always safe, while it runs and after it has finished (DESIGN §3)."""
    async with around.worker(sim.url) as worker:
        gate = Gate()
        worker.bus.before_append = at_done(gate.wait)
        job = await around.run(worker)
        assert job.order
        answers = await asyncio.gather(*(around.ask(worker, job.order) for _ in range(20)))
        assert {answer.status for answer in answers} == {RunStatus.RUNNING}
        await gate.reached.wait()
        assert (await around.ask(worker, job.order)).status is RunStatus.RUNNING
        gate.opened.set()
        await around.freed(job)
        assert [(await around.ask(worker, job.order)).status for _ in range(3)] == [RunStatus.FINISHED] * 3
        assert sim.state.requests[CHAT] == 1


async def test_done_holds_the_whole_log_and_all_facts(around: World, chat_node: ChatNode) -> None:
    """`result` is a pure fold of the log; everything else a client may ask stands in the header (DESIGN §3–4)."""
    past = (PastEpoch(epoch=1, base=0),)
    attempts = (Attempt(epoch=1, node="n0", fault=Fault(code=Code.NODE_FAILED, message="x"), at_ms=5),)
    async with around.worker(chat_node.url) as worker:
        job = await around.run(
            worker, "Say something.", model=chat_node.model, bind={"past": past, "attempts": attempts}, **FIFTY
        )
        facts, body = await around.done(job, within=60)
        await around.freed(job)
    assert job.order
    *said, end = events_of(body)
    assert said
    assert end.end is not None
    assert end.end.state is JobState.SUCCEEDED
    assert end.end.final is not None
    assert end.end.final["done"] is True
    assert not {"message", "response", "thinking", "tool_calls"} & set(end.end.final)
    assert (facts.log_size, facts.log_digest) == (len(body), digest(body))
    assert facts.state is JobState.SUCCEEDED
    assert (facts.node, facts.boot, facts.epoch) == (NODE, worker.boot, job.order.epoch)
    assert (facts.past, facts.attempts, facts.job, facts.submitted) == (past, attempts, job.submission, job.submitted)
    assert facts.usage
    assert facts.usage.prompt_tokens == end.end.final["prompt_eval_count"]
    assert facts.usage.completion_tokens == end.end.final["eval_count"] > 0
    assert facts.timings
    assert facts.timings.total == pytest.approx(end.end.final["total_duration"] / 1e9)
    assert facts.timings.decode == pytest.approx(end.end.final["eval_duration"] / 1e9)
    assert facts.timings.wait is not None
    assert 0 <= facts.timings.wait < 5
    assert facts.timings.first_token is not None
    assert 0 <= facts.timings.first_token < 60
    assert facts.started_ms is not None
    assert job.created_ms - 100 <= facts.started_ms <= facts.finished_ms
    assert facts.fault is None


async def test_live_chunks_are_in_order_and_the_first_leaves_at_once(around: World, chat_node: ChatNode) -> None:
    """The bytes are the same live and stored; the first token does not wait for the last (DESIGN §4)."""
    async with around.worker(chat_node.url) as worker:
        job = await around.run(worker, "Count to fifty.", model=chat_node.model, **FIFTY)
        facts, body = await around.done(job, within=60)
        await eventually(lambda: around.shown(job) == body)
    chunks = [chunk for chunk in around.chunks_of(job) if chunk.data]
    assert len(chunks) > 10
    assert chunks[0].offset == 0
    assert facts.timings
    assert facts.timings.decode is not None
    assert chunks[-1].at - chunks[0].at > facts.timings.decode / 2
    assert [hint.state for hint in around.hints] == [JobState.SUCCEEDED]


async def test_while_nothing_comes_an_empty_chunk_is_sent(
    around: World, sim: SimServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a gateway that missed the last chunk finds out (DESIGN §4)."""
    assert output.BEAT_S == 1.0
    monkeypatch.setattr(output, "BEAT_S", 0.05)
    sim.set_faults(NodeFault(FaultKind.HANG, after_tokens=3))
    async with around.worker(sim.url) as worker:
        job = await around.run(worker, "[[tokens=10]]")
        await eventually(lambda: [chunk.data for chunk in around.chunks_of(job)[-3:]] == [b""] * 3)
        shown = around.shown(job)
        assert len(events_of(shown)) == 3
        assert around.chunks_of(job)[-1].offset == len(shown)
        assert job.order
        await around.cancel(worker, job.order)
        await around.done(job)


async def test_segments_reach_the_stream_while_the_answer_grows(
    around: World, start_sim: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acked about once a beat; what they hold is the log, and never its end before `done`."""
    monkeypatch.setattr(output, "BEAT_S", 0.1)
    sim = await start_sim(decode_tps=100, load_overhead_s=0, disk_gbps=1000)
    async with around.worker(sim.url) as worker:
        job = await around.run(worker, "[[tokens=80]]")

        async def three() -> bool:
            return len(await around.segments(job)) >= 3

        await eventually(three)
        _, body = await around.done(job)
        kept = await around.kept(job)
    assert body.startswith(kept)
    assert len(events_of(kept)) > 15
    assert len(await around.segments(job)) < 20
    assert all(event.end is None for event in events_of(kept))


@pytest.mark.parametrize("wrong", ["boot", "node", "epoch", "revision", "submitted", "swapped", "job"])
async def test_a_binding_that_is_not_this_boots_own_is_refused(around: World, sim: SimServer, wrong: str) -> None:
    """What stands in the log counts, not what an order says; and who asks again hears why (DESIGN §3)."""
    async with around.worker(sim.url) as worker:
        job = await around.submit(messages=[{"role": "user", "content": "Hi"}])
        elsewhere = {"boot": {"boot": "0-other"}, "node": {"node": "n2"}}.get(wrong, {})
        right = await around.bind(worker, job, **elsewhere)
        other = await around.submit(messages=[])
        changes: dict[str, Any] = {
            "epoch": {"epoch": right.epoch + 1000},
            "revision": {"revision": right.revision + 1000},
            "submitted": {"submitted": other.submitted},
            "swapped": {"revision": right.submitted, "submitted": right.revision},
            "job": {"job": other.key.job},
        }.get(wrong, {})
        order: Run = msgspec.structs.replace(right, **changes)

        async def refused() -> Any:
            answer = await around.ask(worker, order)
            return answer if answer.status is not RunStatus.RUNNING else None

        answer = await eventually(refused)
        assert answer.status is RunStatus.REFUSED
        assert answer.reason
        assert CHAT not in sim.state.requests
        assert [free.given_back for _, free in around.frees] == [False]
        assert around.chunks == {}


async def test_the_end_is_shown_to_nobody_before_done_is_acked(around: World, sim: SimServer) -> None:
    """An answer seen as finished is finished: neither the live chunks nor a catch-up tell earlier (DESIGN §4)."""
    async with around.worker(sim.url) as worker:
        gate = Gate()
        worker.bus.before_append = at_done(gate.wait)
        job = await around.run(worker, "[[say=Hello.]]")
        await gate.reached.wait()
        offset, log = parse_frame(await around.read(worker, job))
        assert offset == 0
        assert text_of(log) == "Hello."
        assert all(event.end is None for event in events_of(log))
        assert all(event.end is None for event in events_of(around.shown(job)))
        assert around.hints == []
        assert (await around.journal.newest(job.key)).facts == job.binding  # type: ignore[union-attr]  # it is there
        gate.opened.set()
        _, body = await around.done(job)
        await eventually(lambda: around.shown(job) == body)
        assert parse_frame(await around.read(worker, job)) == (0, body)
        assert parse_frame(await around.read(worker, job, len(body))) == (len(body), b"")
        assert await around.read(worker, job, len(body) + 1) == b""
        assert await around.read(worker, job, -1) == b""
        said = [
            what for what in worker.bus.said if what[1].endswith((".done", ".c", ".free")) or what[1].startswith("evt")
        ]
        ended = said.index(("acked", f"jobs.{job.key.client}.{job.key.job}.done"))
        assert [subject.rpartition(".")[2] for _, subject in said[ended + 1 :]] == ["c", job.key.job, "free"]


async def test_a_log_that_is_no_longer_needed_is_forgotten_without_another_run(
    around: World, sim: SimServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle worker holds nobody's answer."""
    monkeypatch.setattr(runs, "LOG_KEPT_S", 0.05)
    async with around.worker(sim.url) as worker:
        job = await around.run(worker)
        await around.freed(job)

        async def forgotten() -> bool:
            return await around.read(worker, job) == b""

        await eventually(forgotten)


async def test_of_many_ended_logs_the_oldest_are_forgotten(
    around: World, sim: SimServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MAX_BYTES_KEPT", 2000)
    async with around.worker(sim.url) as worker:
        jobs = []
        for _ in range(3):
            jobs.append(await around.run(worker, f"[[say={'x' * 700}]]"))
            await around.freed(jobs[-1])
        assert await around.read(worker, jobs[0]) == b""
        assert await around.read(worker, jobs[2]) != b""


async def test_generate_and_embed_run_as_well(around: World, sim: SimServer) -> None:
    async with around.worker(sim.url) as worker:
        generate = await around.submit(Kind.GENERATE, prompt="[[say=Hello.]]")
        await around.ask(worker, await around.bind(worker, generate))
        facts, body = await around.done(generate)
        assert facts.state is JobState.SUCCEEDED
        assert text_of(body) == "Hello."
        await around.freed(generate)
        embed = await around.submit(Kind.EMBED, model="embed", input=["a", "b"])
        await around.ask(worker, await around.bind(worker, embed))
        facts, body = await around.done(embed)
    event, end = events_of(body)
    assert [len(vector) for vector in json.loads(bytes(event.data))] == [32, 32]
    assert end.end is not None
    assert facts.usage
    assert facts.usage.prompt_tokens > 0
    assert sim.state.requests == sim.state.requests | {"/api/generate": 1, "/api/embed": 1}


async def test_what_the_router_decided_for_the_node_reaches_it(around: World, sim: SimServer) -> None:
    async with around.worker(sim.url) as worker:
        job = await around.run(
            worker, bind={"keep_alive": "10m", "num_ctx": 1024}, options={"num_ctx": 4096, "seed": 1}
        )
        await around.done(job)
    seen = next(each for each in sim.state.last_requests if each.route == CHAT)
    assert set(seen.option_keys) == {"num_ctx", "seed"}
    assert "keep_alive" in seen.keys
    assert sim.state.runners[0].num_ctx == 1024


async def test_a_prompt_that_does_not_fit_is_refused_and_never_cut_in_silence(around: World, sim: SimServer) -> None:
    """The gateway can only guess at tokens; the node's own tokenizer has the last word (ollama-facts.md §2.3)."""
    history = [{"role": "user", "content": "many words " * 60} for _ in range(8)]
    async with around.worker(sim.url) as worker:
        for truncate, state in ((None, JobState.FAILED), (True, JobState.SUCCEEDED)):
            job = await around.submit(messages=history, truncate=truncate)
            await around.ask(worker, await around.bind(worker, job, num_ctx=512))
            facts, _ = await around.done(job)
            assert facts.state is state
            if facts.fault:
                assert facts.fault.code is Code.CONTEXT_LENGTH_EXCEEDED
    assert facts.usage
    assert facts.usage.prompt_tokens < 512


async def test_large_requests_and_large_answers_lie_in_parts(around: World) -> None:
    """Over 512 kB neither fits into one message; chunks are never larger than a gateway takes (DESIGN §3–4)."""
    answer = json.dumps({"model": "embed", "embeddings": [[0.25] * 2000] * 80, "prompt_eval_count": 9}).encode()
    sizes: list[int] = []

    async def script(connection: Connection) -> None:
        while head := await connection.request():
            body = answer if head.startswith(b"POST /api/embed ") else b"{}"
            if body is answer:
                sizes.append(int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]))
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with scripted(script) as node, around.worker(node.url) as worker:
        job = await around.submit(Kind.EMBED, model="embed", input=[f"{n} " * 5000 for n in range(80)])
        await around.ask(worker, await around.bind(worker, job))
        facts, body = await around.done(job)
        await eventually(lambda: sum(len(chunk.data) for chunk in around.chunks_of(job)) == len(body))
        assert around.shown(job) == body
    assert job.submission.size > INLINE_LIMIT
    assert sizes[0] > INLINE_LIMIT
    assert facts.state is JobState.SUCCEEDED
    assert facts.parts is not None
    assert facts.log_digest == digest(body)
    assert max(len(chunk.data) for chunk in around.chunks_of(job)) == MAX_CHUNK


async def test_more_runs_than_the_slots_and_two_are_refused(around: World, sim: SimServer) -> None:
    """Two routers may overlap for a moment; a crowd means that somebody counts wrongly."""
    sim.set_faults(NodeFault(FaultKind.ACCEPT_HANG, count=0))
    async with around.worker(sim.url, slots=1) as worker:
        jobs = [await around.submit(messages=[]) for _ in range(4)]
        answers = [await around.ask(worker, await around.bind(worker, job)) for job in jobs]
        assert [answer.status for answer in answers] == [RunStatus.RUNNING] * 3 + [RunStatus.REFUSED]
        assert answers[3].reason == "no slot"
        assert jobs[0].order
        await around.cancel(worker, jobs[0].order)
        await around.freed(jobs[0])
        assert jobs[3].order
        assert (await around.ask(worker, jobs[3].order)).status is RunStatus.RUNNING


async def test_a_mistake_of_the_worker_counts_as_a_failed_attempt(
    around: World, sim: SimServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a fault the job would go round for ever."""

    def mistaken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(run, "decode_request", mistaken)
    async with around.worker(sim.url) as worker:
        job = await around.run(worker)
        free = await around.freed(job)
    assert free.given_back
    assert free.fault is not None
    assert free.fault.code is Code.INTERNAL


async def test_a_request_that_cannot_be_read_counts_as_a_failed_attempt(around: World, sim: SimServer) -> None:
    async with around.worker(sim.url) as worker:
        job = await around.submit(prompt=5)
        await around.ask(worker, await around.bind(worker, job))
        free = await around.freed(job)
    assert free.given_back
    assert free.fault is not None


@pytest.mark.parametrize("verb", ["run", "cancel", "read"])
async def test_nonsense_is_answered_or_dropped_and_harms_nobody(around: World, sim: SimServer, verb: Any) -> None:
    async with around.worker(sim.url) as worker:
        for payload in (b"", b"{}", b"\xff", b'{"job":5}'):
            await around.bus.publish(f"ctl.{NODE}.{worker.boot}.{verb}", payload)
        job = await around.run(worker)
        facts, _ = await around.done(job)
    assert facts.state is JobState.SUCCEEDED
