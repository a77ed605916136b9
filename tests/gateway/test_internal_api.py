"""`api.<client>.*`: the same jobs over NATS, answered only to the client's own inboxes."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away
from libs.common.bus.link import Message
from libs.common.contracts.api import decode_piece
from libs.common.contracts.clients import DEFAULT_SCOPES, Client, Policy, Scope
from libs.common.contracts.codec import encode
from libs.common.contracts.events import frame
from libs.common.contracts.faults import Code
from libs.common.contracts.jobs import PastEpoch
from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey
from libs.common.journal import Journal
from services.gateway import internal, job_service, reading
from tests.gateway.calling import Service
from tests.gateway.conftest import adopt
from tests.gateway.running import MODEL, Gateway
from tests.gateway.scripted import END, Script, events
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

JOB = {"model": MODEL, "prompt": "hi"}
ONE, TWO = events("one "), events("zwö ")


@pytest.fixture
async def service(nats: NatsServer, gateway: Gateway) -> AsyncIterator[Service]:
    async with connected(nats, "alice") as bus:
        made = Service(bus)
        await eventually(lambda: _answered(made))
        yield made


async def _answered(service: Service) -> bool:
    return "ok" in await service.ask("list")


async def test_a_job_is_submitted_looked_at_and_taken(service: Service, bus: Bus) -> None:
    made = await service.ok("submit", {"job": JOB | {"metadata": {"run": "4"}}})
    assert made == {"id": made["id"], "state": "queued", "kind": "generate", "model": MODEL}
    seen = await service.ok("get", {"id": made["id"]})
    assert (seen["state"], seen["position"], seen["metadata"]) == ("queued", 4, {"run": "4"})

    script = await adopt(bus, made["id"])
    await script.bind()
    waiting = asyncio.create_task(service.ok("get", {"id": made["id"], "wait_s": 20}))
    await script.finish(events("Hello ") + END)
    done = await waiting
    assert (done["state"], done["result"]["response"]) == ("succeeded", "Hello ")


async def test_a_job_is_cancelled_and_when_finished_erased(
    service: Service, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_service, "CANCEL_WAIT_S", 0.05)
    job = (await service.ok("submit", {"job": JOB}))["id"]
    assert (await service.ok("cancel", {"id": job}))["cancelling"] is True
    assert await Journal(bus).cancel_mark(JobKey("alice", job)) is not None
    script = await adopt(bus, job)
    await script.finish(END)
    kept = await service.ok("cancel", {"id": job, "keep": True})
    assert (kept["state"], "cancelling" in kept, kept["result"]["done"]) == ("succeeded", False, True)
    assert await service.ok("cancel", {"id": job}) == {"id": job, "state": "succeeded", "erased": True}
    assert (await service.fault("get", {"id": job}))["code"] == Code.JOB_NOT_FOUND


async def piece(
    service: Service, job: str, epoch: int = 0, offset: int = 0, **more: Any
) -> tuple[str, int, int | None, bytes]:
    """(state, epoch, offset, log)."""
    found = decode_piece(json.dumps(await service.ok("read", {"id": job, "epoch": epoch, "offset": offset} | more)))
    return found.state, found.epoch, found.offset, found.log


async def test_the_log_of_a_job_is_read_from_any_place_while_it_runs_and_after(service: Service, bus: Bus) -> None:
    """What a service missed of the live chunks, it reads here; at the end of what there is, nothing."""
    job = (await service.ok("submit", {"job": JOB}))["id"]
    assert await piece(service, job) == ("queued", 0, None, b"")
    script = await adopt(bus, job)
    async with script.answering():
        epoch = await script.bind()
        await script.write(ONE, TWO, live=False)
        assert await piece(service, job) == ("bound", epoch, 0, ONE + TWO)
        assert await piece(service, job, epoch, 5) == ("bound", epoch, 5, (ONE + TWO)[5:])
        assert await piece(service, job, epoch, len(ONE + TWO)) == ("bound", epoch, len(ONE + TWO), b"")
        assert await piece(service, job, epoch, 999) == ("bound", epoch, 999, b"")
        whole = await script.finish()
    assert await piece(service, job) == ("succeeded", epoch, 0, whole)
    assert await piece(service, job, epoch, 5) == ("succeeded", epoch, 5, whole[5:])


async def test_a_place_in_an_earlier_epoch_is_the_same_up_to_its_base_and_no_further(
    service: Service, bus: Bus
) -> None:
    job = (await service.ok("submit", {"job": JOB}))["id"]
    script = await adopt(bus, job)
    first = await script.bind()
    second = await script.requeue(past=(PastEpoch(epoch=first),))
    answer = await service.ok("read", {"id": job, "epoch": first, "offset": 3})
    assert answer == {"state": "queued", "epoch": second, "lineage": [{"epoch": first}]}, "not fixed yet"

    # The base is fixed, but a requeue's epoch is no place: the next binding will not list it.
    second = await script.requeue(past=(PastEpoch(epoch=first, base=len(ONE)),), base=len(ONE))
    assert await piece(service, job, first, 3) == ("queued", second, None, b"")
    past = (PastEpoch(epoch=first, base=len(ONE)),)
    third = await script.bind(carried=ONE, past=past)
    assert await piece(service, job, first, 3) == ("bound", third, 3, ONE[3:]), (
        "the worker need not answer for what was carried"
    )
    assert await piece(service, job, first, len(ONE) + 1) == ("bound", third, None, b"")
    assert await piece(service, job, third + 7, 3) == ("bound", third, None, b""), (
        "the answer is older than the question"
    )
    async with script.answering():
        await script.write(TWO, live=False)
        assert await piece(service, job, first, len(ONE)) == ("bound", third, len(ONE), TWO)
        whole = await script.finish()
    assert await piece(service, job, first, len(ONE)) == ("succeeded", third, len(ONE), whole[len(ONE) :])
    assert await piece(service, job, first, len(ONE) + 1) == ("succeeded", third, None, b"")


async def test_a_worker_that_is_silent_costs_nothing_but_time(
    service: Service, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "WORKER_S", 0.1)
    job = (await service.ok("submit", {"job": JOB}))["id"]
    script = await adopt(bus, job)
    epoch = await script.bind()
    assert await piece(service, job) == ("bound", epoch, 0, b""), "nobody is there"
    async with script.answering():
        await script.write(ONE, live=False)
        script.silent = True
        assert await piece(service, job) == ("bound", epoch, 0, b"")


@pytest.mark.parametrize("size", [1000, 400_000, 700_000, 3_000_000])
async def test_a_log_larger_than_a_message_is_read_in_pieces(service: Service, bus: Bus, size: int) -> None:
    """Of a record in one message and of one in parts, inside an event too."""
    job = (await service.ok("submit", {"job": JOB}))["id"]
    script = await adopt(bus, job)
    epoch = await script.bind()
    whole = await script.finish(events("é" * (size // 2)) + END)
    log = b""
    while len(log) < len(whole):
        _, _, offset, more = await piece(service, job, epoch, len(log))
        assert offset == len(log)
        assert 0 < len(more) <= 256 * 1024
        log += more
    assert log == whole
    assert await piece(service, job, epoch, len(whole) + 5) == ("succeeded", epoch, len(whole) + 5, b"")


async def test_who_waits_for_more_of_the_log_is_a_reader_that_the_router_hears(service: Service, bus: Bus) -> None:
    """A service that reads chunks itself has no subscription for the router's question: the gateway answers for it."""
    job = (await service.ok("submit", {"job": JOB}))["id"]
    script = await adopt(bus, job)
    async with script.answering():
        epoch = await script.bind()
        await script.write(ONE)
        waiting = asyncio.create_task(piece(service, job, epoch, len(ONE), wait_s=20))
        await eventually(lambda: len(script.reads) == 2)
        assert min(script.reads) == len(ONE) - 1, "from there on: nothing of what was seen is read again"
        await script.write(TWO)
        await piece(service, job)  # when this has been answered, the gateway has dealt with the chunk
        assert await script.freeze(epoch) == frame(len(ONE), TWO)
        assert not waiting.done()
        whole = await script.finish()
        assert await waiting == ("succeeded", epoch, len(ONE), whole[len(ONE) :])


async def test_jobs_are_listed_page_by_page(service: Service, bus: Bus) -> None:
    for n in range(5):
        await Script(bus, JobKey("alice", f"job_{n}")).submit()
    first = await service.ok("list", {"limit": 2})
    assert [job["id"] for job in first["jobs"]] == ["job_0", "job_1"]
    rest = await service.ok("list", {"cursor": first["cursor"]})
    assert [job["id"] for job in rest["jobs"]] == ["job_2", "job_3", "job_4"]
    assert rest["cursor"] is None
    assert (await service.ok("list", {"state": "failed"}))["jobs"] == []


async def test_the_same_key_gives_the_same_job_and_another_body_is_refused(service: Service) -> None:
    made = await service.ok("submit", {"job": JOB, "idempotency_key": "k"})
    again = await service.ok("submit", {"job": JOB, "idempotency_key": "k"})
    assert again["id"] == made["id"]
    fault = await service.fault("submit", {"job": JOB | {"prompt": "x"}, "idempotency_key": "k"})
    assert fault["code"] == Code.IDEMPOTENCY_MISMATCH


@pytest.mark.parametrize(
    ("verb", "payload", "code", "path"),
    [
        ("submit", {"job": {"model": MODEL}}, Code.INVALID_REQUEST, None),
        ("submit", {"job": JOB | {"temprature": 1}}, Code.INVALID_REQUEST, "temprature"),
        ("submit", {"job": JOB | {"model": "gpt-9"}}, Code.MODEL_NOT_FOUND, "model"),
        ("submit", {"job": 7}, Code.INVALID_REQUEST, None),
        ("submit", {"job": JOB, "idempotency_key": 7}, Code.INVALID_REQUEST, None),
        ("submit", {"job": JOB, "idempotency_key": ""}, Code.INVALID_REQUEST, "Idempotency-Key"),
        ("submit", {}, Code.INVALID_REQUEST, None),
        ("submit", None, Code.INVALID_REQUEST, None),
        ("submit", b"{", Code.INVALID_REQUEST, None),
        ("submit", b"\xff", Code.INVALID_REQUEST, None),
        ("submit", b'{"job":"\xff"}', Code.INVALID_REQUEST, None),
        ("submit", {"job": JOB | {"prompt": "x" * 1_044_500}}, Code.TOO_LARGE, None),
        ("get", {"id": "job_nothere"}, Code.JOB_NOT_FOUND, None),
        ("get", {"id": "*"}, Code.JOB_NOT_FOUND, None),
        ("get", {"id": ">"}, Code.JOB_NOT_FOUND, None),
        ("get", {}, Code.INVALID_REQUEST, None),
        ("get", {"id": "x", "wait_s": "long"}, Code.INVALID_REQUEST, None),
        ("read", {"id": "x", "wait_s": "long"}, Code.INVALID_REQUEST, None),
        ("read", {"id": "job_nothere"}, Code.JOB_NOT_FOUND, None),
        ("read", {"id": ">"}, Code.JOB_NOT_FOUND, None),
        ("read", {}, Code.INVALID_REQUEST, None),
        ("read", {"id": "x", "offset": -1}, Code.INVALID_REQUEST, None),
        ("read", {"id": "x", "epoch": "7"}, Code.INVALID_REQUEST, None),
        ("read", {"id": "x", "reader": "a.b"}, Code.INVALID_REQUEST, "reader"),
        ("read", {"id": "x", "reader": "r" * 33}, Code.INVALID_REQUEST, "reader"),
        ("read", {"id": "job_nothere", "wait_s": 1e999}, Code.INVALID_REQUEST, None),
        ("leave", {"id": ">"}, Code.JOB_NOT_FOUND, None),
        ("leave", {}, Code.INVALID_REQUEST, None),
        ("leave", {"id": "x", "reader": ">"}, Code.INVALID_REQUEST, "reader"),
        ("cancel", {"id": "job_nothere"}, Code.JOB_NOT_FOUND, None),
        ("cancel", {"id": 7}, Code.INVALID_REQUEST, None),
        ("list", {"limit": 0}, Code.INVALID_REQUEST, "limit"),
        ("list", {"limit": "5"}, Code.INVALID_REQUEST, None),
        ("list", {"cursor": "²"}, Code.INVALID_REQUEST, "cursor"),
        ("list", {"state": "happy"}, Code.INVALID_REQUEST, "state"),
        ("erase", {}, Code.NOT_FOUND, None),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_a_fault_with_the_code_and_path_of_the_http_surface(
    service: Service, verb: str, payload: Any, code: Code, path: str | None
) -> None:
    fault = await service.fault(verb, payload)
    assert (fault["code"], fault.get("path")) == (code, path)
    assert fault["message"]


async def test_somebody_elses_job_looks_exactly_like_none_at_all(service: Service, bus: Bus) -> None:
    script = Script(bus, JobKey("bob", "job_of_bob"))
    await script.submit()
    for verb in ("get", "read", "cancel"):
        assert await service.fault(verb, {"id": "job_of_bob"}) == await service.fault(verb, {"id": "job_nothere"})
    assert (await service.ok("list"))["jobs"] == []
    assert await Journal(bus).cancel_mark(script.key) is None


@pytest.mark.parametrize(
    "reply", ["_INBOX.bob.x", "_INBOX.x", "_INBOX.alicex.1", "jobs.bob.job_x.new", "evt.bob.x", "_INBOX.alice"]
)
async def test_an_answer_goes_to_the_clients_own_inboxes_or_nowhere(service: Service, bus: Bus, reply: str) -> None:
    """A reply subject of the caller's choice could aim an answer at a stream, or at somebody who reads along."""
    heard: list[Message] = []
    subscription = await bus.subscribe(">", heard.append)
    await bus.last("JOBS", "jobs.>")  # the server has the subscription once it has answered this
    await service.bus.publish("api.alice.submit", json.dumps({"job": JOB}).encode(), reply=reply)
    await service.ok("list")  # asked afterwards on the same connection, so the first has been dealt with
    await service.bus.publish("test.end")
    await eventually(lambda: any(message.subject == "test.end" for message in heard))
    assert not [message for message in heard if message.subject == reply]
    assert not [message for message in heard if message.subject.startswith("jobs.")], "and nothing was stored"
    await subscription.stop()


async def test_a_client_that_does_not_exist_or_is_disabled_is_refused(
    service: Service, nats: NatsServer, bus: Bus
) -> None:
    async with connected(nats, "nobody") as stranger:
        assert (await Service(stranger).fault("list"))["code"] == Code.UNAUTHENTICATED
    await bus.append("$KV.clients.client.alice", encode(Client(id="alice", name="alice", disabled=True)))

    async def refused() -> bool:
        return "fault" in await service.ask("list")

    await eventually(refused)
    assert (await service.fault("list"))["code"] == Code.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("verb", "scope"),
    [
        ("submit", Scope.JOBS_WRITE),
        ("get", Scope.JOBS_READ),
        ("read", Scope.JOBS_READ),
        ("leave", Scope.JOBS_READ),
        ("list", Scope.JOBS_READ),
        ("cancel", Scope.JOBS_CANCEL),
    ],
)
async def test_each_verb_needs_its_scope(service: Service, bus: Bus, verb: str, scope: Scope) -> None:
    scopes = tuple(other for other in DEFAULT_SCOPES if other != scope)
    await bus.append("$KV.clients.client.alice", encode(Client(id="alice", name="alice", scopes=scopes)))

    async def forbidden() -> bool:
        return bool((await service.ask(verb)).get("fault", {}).get("code") == Code.FORBIDDEN)

    await eventually(forbidden)


async def test_the_clients_policy_holds_here_too(service: Service, bus: Bus) -> None:
    policy = Policy(priority=Priority.BATCH)
    await bus.append("$KV.clients.client.alice", encode(Client(id="alice", name="alice", policy=policy)))

    async def batch() -> bool:
        job = (await service.ok("submit", {"job": JOB | {"priority": "interactive"}}))["id"]
        return bool((await service.ok("get", {"id": job}))["priority"] == "batch")

    await eventually(batch)


async def test_a_result_too_large_for_a_message_says_where_to_read_it(
    service: Service, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-server would refuse the answer, and the caller would wait for nothing."""
    monkeypatch.setattr(internal, "MAX_ANSWER", 5000)
    job = (await service.ok("submit", {"job": JOB}))["id"]
    script = await adopt(bus, job)
    await script.bind()
    await script.finish(events("x" * 6000) + END)
    fault = await service.fault("get", {"id": job})
    assert fault["code"] == Code.RESULT_TOO_LARGE
    assert "/jobs/" in fault["message"]


async def test_a_stored_record_that_cannot_be_read_is_not_the_callers_fault(service: Service, bus: Bus) -> None:
    job = (await service.ok("submit", {"job": JOB}))["id"]
    script = await adopt(bus, job)
    await script.bind()
    await script.finish(b'{"text":1}\n' + END)
    assert (await service.fault("get", {"id": job}))["code"] == Code.INTERNAL


async def test_a_draining_gateway_leaves_requests_to_the_others(gateway: Gateway, service: Service) -> None:
    assert gateway.running.drain
    await gateway.running.drain()

    async def gone() -> bool:
        try:
            await service.ask("list", timeout=1.0)  # the server may not know yet that nobody is there
        except Away:
            return False
        except internal.BusError:
            return True  # no responders
        return False

    await eventually(gone)
