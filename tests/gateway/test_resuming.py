"""OpenAI's dialect goes on where it was cut, at any gateway, with the bytes of the uncut stream."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.contracts.events import End, Event, line
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.jobs import PastEpoch
from libs.common.contracts.subjects import JobKey
from libs.common.folder import Entry
from libs.common.journal import Journal
from libs.common.states import JobState
from tests.gateway.conftest import Keys, adopt
from tests.gateway.running import MODEL, Gateway, running_gateway
from tests.gateway.scripted import Script, events
from tests.gateway.test_openai_routes import BODY, CHAT, PATIENT_S, Jobs, asking, failing
from tests.support.clients import Sse, parse_sse
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

CALL = line(Event(tool_call=msgspec.Raw(b'{"function":{"name":"weather","arguments":{"city":"La Paz"}}}')))
THOUGHT = line(Event(thinking="hm"))
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
KEYED = {"Idempotency-Key": "k-1"}
EVERYTHING = [THOUGHT, events("Hello "), CALL, CALL, events("world")]


class OldJobs(Jobs):
    """As if they had been submitted long ago: what is said of their time can only come from their records."""

    async def next(self) -> Script:
        script = await super().next()
        script.created_ms -= 3_600_000
        return script


@pytest.fixture
async def jobs(bus: Bus, gateway: Gateway) -> AsyncIterator[Jobs]:
    async with OldJobs(bus) as arriving:
        yield arriving


@pytest.fixture
async def elsewhere(nats: NatsServer, gateway: Gateway, keys: Keys) -> AsyncIterator[httpx.AsyncClient]:
    """alice at another gateway."""
    async with running_gateway(nats, drain_grace=0) as other, other.client(keys.alice) as client:
        yield client


async def uncut(client: httpx.AsyncClient, jobs: Jobs, *log: bytes, **more: Any) -> tuple[Script, str]:
    """A keyed chat read in one go: its job, and its bytes."""
    client.headers.update(KEYED)
    async with asking(client, **{**STREAMED, **more}) as answering:
        script = await jobs.next()
        await script.bind()
        await script.write(*log)
        await script.end()
        return script, (await answering).text


def seen_and_id(text: str) -> list[tuple[str, str]]:
    """What a client has when it is cut after each event: (all it saw, the last id it knows)."""
    found, seen = [], ""
    for event in parse_sse(text):
        seen += event.raw
        found.append((seen, event.id))
    return found


def deltas(events: list[Sse]) -> list[dict[str, Any]]:
    return [
        choice["delta"] for event in events if event.data != "[DONE]" for choice in json.loads(event.data)["choices"]
    ]


async def test_a_finished_stream_goes_on_from_every_id_with_the_same_bytes_at_another_gateway(
    alice: httpx.AsyncClient, elsewhere: httpx.AsyncClient, jobs: Jobs
) -> None:
    """Also between the frames of the end: each has an id of its own."""
    script, text = await uncut(alice, jobs, *EVERYTHING)
    cuts = seen_and_id(text)
    assert len(cuts) == len(EVERYTHING) + 3, "the events, then the reason, the usage, [DONE]"
    assert len({at for _, at in cuts}) == len(cuts)
    assert text.endswith("data: [DONE]\n\n")
    for name in (script.key.job, f"chatcmpl-{script.key.job.removeprefix('job_')}"):
        path = f"{CHAT}/{name}"
        assert (await elsewhere.get(path, params={"stream": "true"})).text == text
        for seen, at in cuts:
            for asked in (
                {"headers": {"Last-Event-ID": at}, "params": {"stream": "true"}},
                {"params": {"stream": "true", "after": at}},
            ):
                answer = await elsewhere.get(path, **asked)  # type: ignore[arg-type]  # httpx takes either
                assert (answer.status_code, answer.headers["arriero-job-id"]) == (200, script.key.job)
                assert seen + answer.text == text


async def test_the_same_request_with_its_key_and_last_event_id_goes_on_too(
    alice: httpx.AsyncClient, elsewhere: httpx.AsyncClient, jobs: Jobs
) -> None:
    _, text = await uncut(alice, jobs, *EVERYTHING)
    for seen, at in seen_and_id(text):
        answer = await elsewhere.post(CHAT, json=BODY | STREAMED, headers={**KEYED, "Last-Event-ID": at})
        assert seen + answer.text == text


async def watched(script: Script) -> bytes | None:
    """Does a gateway answer for it? The one that was just left may have taken the question with it."""
    with contextlib.suppress(BusError):
        return await script.freeze(0)
    return None


async def test_a_running_stream_is_cut_and_goes_on_at_another_gateway(
    alice: httpx.AsyncClient, elsewhere: httpx.AsyncClient, jobs: Jobs
) -> None:
    """The role comes once, tool calls go on counting, `created` is the job's."""
    alice.headers["Arriero-Detach"] = "true"
    request = alice.build_request("POST", CHAT, json=BODY | STREAMED)
    sending = asyncio.create_task(alice.send(request, stream=True))
    script = await jobs.next()
    async with script.answering():
        await script.bind()
        await script.write(THOUGHT, CALL)
        response = await asyncio.wait_for(sending, PATIENT_S)
        first = ""
        async for piece in response.aiter_text():
            first += piece
            if "weather" in first:
                break
        await response.aclose()
        last = parse_sse(first)[-1].id
        path = f"{CHAT}/{script.key.job}"
        rest = asyncio.create_task(elsewhere.get(path, params={"stream": "true", "after": last}))
        await eventually(lambda: watched(script))
        await script.write(CALL, events("done"))
        await script.end()
        second = (await asyncio.wait_for(rest, PATIENT_S)).text
        whole = (await elsewhere.get(path, params={"stream": "true"})).text
    assert first + second == whole
    made = deltas(parse_sse(whole))
    assert [delta.get("role") for delta in made] == ["assistant", *[None] * (len(made) - 1)]
    assert [call["index"] for delta in made for call in delta.get("tool_calls", [])] == [0, 1]
    chunks = [json.loads(event.data) for event in parse_sse(whole)[:-1]]
    assert {chunk["created"] for chunk in chunks} == {script.created_ms // 1000}
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_stream_that_went_over_to_another_node_goes_on_from_a_place_under_the_first(
    alice: httpx.AsyncClient, elsewhere: httpx.AsyncClient, jobs: Jobs
) -> None:
    alice.headers.update(KEYED)
    async with asking(alice, **STREAMED) as answering:
        script = await jobs.next()
        first = await script.bind()
        await script.write(CALL, events("one "))
        base = len(script.log)
        await eventually(lambda: watched(script))
        await script.bind(carried=script.log, past=(PastEpoch(epoch=first, base=base),))
        await script.write(events("two "), CALL)
        await script.end()
        text = (await answering).text
    assert text.endswith("[DONE]\n\n")
    after_first = next(seen for seen in seen_and_id(text) if seen[1] == f"{first}.{base}")
    params = {"stream": "true", "after": after_first[1]}
    rest = (await elsewhere.get(f"{CHAT}/{script.key.job}", params=params)).text
    assert after_first[0] + rest == text


async def test_the_whole_completion_is_there_as_often_as_it_is_asked_for(
    alice: httpx.AsyncClient, elsewhere: httpx.AsyncClient, jobs: Jobs
) -> None:
    alice.headers.update(KEYED)
    async with asking(alice) as answering:
        script = await jobs.next()
        waiting = asyncio.create_task(elsewhere.get(f"{CHAT}/{script.key.job}"))
        await script.bind()
        await script.write(events("Hello "), CALL)
        await eventually(lambda: watched(script))
        assert not waiting.done(), "it waits for the end, as the first one does"
        await script.end()
        first, second = await answering, await asyncio.wait_for(waiting, PATIENT_S)
    assert first.content == second.content == (await alice.get(f"{CHAT}/{script.key.job}")).content
    assert first.json()["created"] == script.created_ms // 1000


async def test_a_failed_chat_has_its_failure_as_often_as_it_is_asked_for(alice: httpx.AsyncClient, jobs: Jobs) -> None:
    alice.headers.update(KEYED)
    async with asking(alice, stream=True) as answering:
        script = await jobs.next()
        await script.bind()
        await script.write(events("half "))
        await failing(script, Fault(code=Code.INTERRUPTED, message="cut off"), log=script.log)
        text = (await answering).text
    path = f"{CHAT}/{script.key.job}"
    whole = await alice.get(path)
    assert (whole.status_code, whole.json()["error"]["code"]) == (502, "interrupted")
    for seen, at in seen_and_id(text):
        rest = (await alice.get(path, params={"stream": "true", "after": at})).text
        assert seen + rest == text


@pytest.mark.parametrize("place", ["{epoch}.3", "{epoch}.99999", "{epoch}.0-1", "1.5", "{epoch}.{end}-1"])
@pytest.mark.parametrize("by", ["get", "post"])
async def test_a_place_that_no_frame_ended_at_is_an_answer_of_its_own(
    alice: httpx.AsyncClient, jobs: Jobs, place: str, by: str
) -> None:
    script, text = await uncut(alice, jobs, events("one "), events("two "))
    epoch, _, end = parse_sse(text)[0].id.partition(".")
    after = place.format(epoch=epoch, end=end)
    if by == "get":
        answer = await alice.get(f"{CHAT}/{script.key.job}", params={"stream": "true", "after": after})
    else:
        answer = await alice.post(CHAT, json=BODY | STREAMED, headers={"Last-Event-ID": after})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "position_lost")


async def test_a_place_that_is_none_is_refused(alice: httpx.AsyncClient, jobs: Jobs) -> None:
    script, _ = await uncut(alice, jobs, events("one "))
    path = f"{CHAT}/{script.key.job}"
    for after in ("x", "1", "1.2-", "1.2-10", "-1", "1.2-x"):
        answer = await alice.get(path, params={"stream": "true", "after": after})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")
    for params in ({"after": "1.2"}, {"stream": "perhaps"}):
        assert (await alice.get(path, params=params)).status_code == 400
    assert (await alice.head(path)).status_code == 200
    assert (await alice.head(path, params={"stream": "true"})).headers["content-type"].startswith("text/event-stream")


async def test_who_goes_on_never_begins_another_answer(alice: httpx.AsyncClient, jobs: Jobs, bus: Bus) -> None:
    """A request that is sent again only to go on, whose job is not there, makes none; nor does one without its key."""
    before = (await bus.api("STREAM.INFO.JOBS"))["state"]["last_seq"]
    for headers, more, status, code in (
        ({**KEYED, "Last-Event-ID": "5.7"}, STREAMED, 409, "position_lost"),
        ({"Last-Event-ID": "5.7"}, STREAMED, 400, "invalid_request"),
        ({**KEYED, "Last-Event-ID": "5.7"}, {}, 400, "invalid_request"),
    ):
        async with asyncio.timeout(PATIENT_S):  # one that begins would wait for a node that is not there
            answer = await alice.post(CHAT, json=BODY | more, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert (await bus.api("STREAM.INFO.JOBS"))["state"]["last_seq"] == before


@pytest.mark.parametrize("looks", [1, 2])
async def test_a_job_that_goes_while_its_reader_comes_back_is_not_begun_again(
    alice: httpx.AsyncClient, jobs: Jobs, bus: Bus, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """Its time is over just after the gateway has seen it, for the first time or for the second."""
    script, text = await uncut(alice, jobs, events("one "), events("two "))
    before = (await bus.api("STREAM.INFO.JOBS"))["state"]["last_seq"]
    seen, look = 0, Journal.newest

    async def look_once_more(self: Journal, key: JobKey, **more: Any) -> Entry | None:
        nonlocal seen
        found = await look(self, key, **more)
        seen += 1
        if seen == looks:
            await bus.api("STREAM.PURGE.JOBS", {"filter": f"jobs.alice.{script.key.job}.>"})
        return found

    monkeypatch.setattr(Journal, "newest", look_once_more)
    async with asyncio.timeout(PATIENT_S):
        answer = await alice.post(CHAT, json=BODY | STREAMED, headers={"Last-Event-ID": parse_sse(text)[0].id})
    assert seen >= looks
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "position_lost")
    assert (await bus.api("STREAM.INFO.JOBS"))["state"]["last_seq"] == before


async def test_who_goes_on_with_another_request_is_told(alice: httpx.AsyncClient, jobs: Jobs) -> None:
    _, text = await uncut(alice, jobs, events("one "))
    at = parse_sse(text)[0].id
    async with asyncio.timeout(PATIENT_S):
        answer = await alice.post(CHAT, json=BODY | STREAMED | {"seed": 5}, headers={"Last-Event-ID": at})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_mismatch")


async def test_only_chats_of_this_dialect_and_of_this_client_are_found(
    alice: httpx.AsyncClient, bob: httpx.AsyncClient, jobs: Jobs, bus: Bus
) -> None:
    script, _ = await uncut(alice, jobs, events("one "))
    theirs = await bob.get(f"{CHAT}/{script.key.job}")
    unknown = await bob.get(f"{CHAT}/job_{'a' * 26}")
    assert (theirs.status_code, theirs.content) == (unknown.status_code, unknown.content)
    assert theirs.json()["error"]["code"] == "job_not_found"
    native = (await alice.post("/jobs", json={"model": MODEL, "prompt": "x"}, headers={"Idempotency-Key": "n"})).json()
    await (await adopt(bus, native["id"])).bind()
    assert (await alice.get(f"{CHAT}/{native['id']}")).json() == theirs.json()


async def test_a_resumed_reader_that_leaves_cancels_nothing(
    gateway: Gateway, keys: Keys, alice: httpx.AsyncClient, jobs: Jobs, bus: Bus
) -> None:
    address = httpx.URL(gateway.url)
    async with asking(alice, stream=True):  # one that would cancel, if it left
        script = await jobs.next()
        await script.bind()
        await eventually(lambda: watched(script))
        before = gateway.subscriptions
        for query in ("?stream=true", ""):
            _, writer = await asyncio.open_connection(address.host, address.port)
            head = (
                f"GET {CHAT}/{script.key.job}{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {keys.alice}\r\n\r\n"
            )
            writer.write(head.encode())
            await eventually(lambda: gateway.subscriptions == before + 3)
            writer.close()
            await eventually(lambda: gateway.subscriptions == before)
        assert await Journal(bus).cancel_mark(script.key) is None
        await script.finish(line(Event(end=End(state=JobState.SUCCEEDED, final={}))))
