"""The HTTP client: against the simulator, and against servers that misbehave byte by byte."""

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import msgspec
import pytest

from libs.common.contracts.events import Event
from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.faults import Fault, FaultKind
from libs.ollama_sim.models import parse_models
from libs.ollama_sim.server import SimServer, running
from services.worker import ollama as ollama_module
from services.worker.endings import Broke, Ending, Finished, Rejected
from services.worker.ollama import NodeAway, Ollama
from tests.support.waiting import eventually
from tests.worker.sockets import DONE, LAST_CHUNK, OK, Connection, chunk, scripted, token

MODELS = parse_models("chat=2GB:tools,thinker=2GB:thinking:tools,embed=100MB:embed:dim=32:ctx=64")
CHAT = "/api/chat"


@pytest.fixture
async def sim() -> AsyncIterator[SimServer]:
    async with running(NodeConfig(models=MODELS, is_instant=True)) as started:
        yield started


@contextlib.asynccontextmanager
async def client(url: str, *, connections: int = 1) -> AsyncIterator[Ollama]:
    ollama = Ollama(url, connections=connections)
    try:
        yield ollama
    finally:
        await ollama.close()


def chat(text: str = "Hi", *, model: str = "chat", **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **fields}).encode()


async def read(ollama: Ollama, path: str = CHAT, body: bytes = b"{}") -> tuple[list[Event], Ending]:
    """All events, and the one ending, which must come last."""
    events: list[Event] = []
    ending: Ending | None = None
    async with asyncio.timeout(10), contextlib.aclosing(ollama.stream(path, body)) as stream:
        async for item in stream:
            assert ending is None
            if isinstance(item, list):
                assert item
                events += item
            else:
                ending = item
    assert ending is not None
    return events, ending


def text_of(events: list[Event]) -> str:
    return "".join(event.text or "" for event in events)


# -- the simulator ---------------------------------------------------------------------------------------------------------


async def test_an_answer_comes_as_events_and_ends_with_ollamas_final_object(sim: SimServer) -> None:
    async with client(sim.url) as ollama:
        events, ending = await read(ollama, body=chat("[[say=Hello, wörld!]]"))
    assert text_of(events) == "Hello, wörld!"
    assert isinstance(ending, Finished)
    assert ending.final["done_reason"] == "stop"
    assert ending.final["eval_count"] > 0


async def test_thinking_and_tool_calls_come_as_events(sim: SimServer) -> None:
    tools = [
        {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
    ]
    body = chat('[[think=3]] [[tool=get_weather {"city":"Oslo"}]]', model="thinker", tools=tools)
    async with client(sim.url) as ollama:
        events, ending = await read(ollama, body=body)
    assert any(event.thinking for event in events)
    calls = [json.loads(bytes(event.tool_call)) for event in events if event.tool_call]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls] == [
        ("get_weather", {"city": "Oslo"})
    ]
    assert isinstance(ending, Finished)


async def test_an_embedding_is_one_event(sim: SimServer) -> None:
    async with client(sim.url) as ollama:
        events, ending = await read(ollama, "/api/embed", json.dumps({"model": "embed", "input": ["a", "b"]}).encode())
    assert [len(json.loads(bytes(event.data))) for event in events] == [2]
    assert isinstance(ending, Finished)
    assert "embeddings" not in ending.final


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (FaultKind.CRASH, "[[tokens=20]]"),
        (FaultKind.DEATH, "[[tokens=20]]"),
        (FaultKind.EOF, "[[tokens=20]]"),
        (FaultKind.HALF_LINE, "[[tokens=20]]"),
        (FaultKind.RESET, "[[tokens=20]]"),
    ],
)
async def test_an_answer_that_ends_badly_is_broken_and_keeps_what_came(
    sim: SimServer, kind: FaultKind, text: str
) -> None:
    """Success is the terminal marker; a reset may take unread tokens with it."""
    sim.set_faults(Fault(kind, after_tokens=5))
    async with client(sim.url) as ollama:
        events, ending = await read(ollama, body=chat(text))
    assert isinstance(ending, Broke)
    assert ending.text
    assert len(events) <= 5
    assert len(events) == 5 or kind is FaultKind.RESET


@pytest.mark.parametrize("kind", [FaultKind.HTML, FaultKind.EMPTY])
async def test_a_200_that_is_no_answer_is_broken(sim: SimServer, kind: FaultKind) -> None:
    sim.set_faults(Fault(kind))
    async with client(sim.url) as ollama:
        events, ending = await read(ollama, body=chat())
    assert events == []
    assert isinstance(ending, Broke)


@pytest.mark.parametrize(
    ("fault", "status"),
    [(Fault(FaultKind.BUSY), 503), (Fault(FaultKind.OPTION_ERROR), 500), (Fault(FaultKind.CRASH), 500)],
)
async def test_an_error_before_the_first_token_is_rejected_with_its_text(
    sim: SimServer, fault: Fault, status: int
) -> None:
    sim.set_faults(fault)
    async with client(sim.url) as ollama:
        events, ending = await read(ollama, body=chat())
    assert events == []
    assert isinstance(ending, Rejected)
    assert ending.status == status
    assert len(ending.text) > 10


@pytest.mark.parametrize("after_tokens", [0, 5])
async def test_leaving_a_silent_stream_ends_the_request_at_the_node(sim: SimServer, after_tokens: int) -> None:
    """Closing the connection is Ollama's only way to be told, before the headers and after (ollama-facts.md §2.6)."""
    sim.set_faults(Fault(FaultKind.HANG, after_tokens=after_tokens))
    async with client(sim.url) as ollama:
        reading = asyncio.create_task(read(ollama, body=chat("[[tokens=20]]")))
        await sim.until(lambda state: state.in_flight == 1 and state.tokens == after_tokens)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        state = await sim.until(lambda state: state.in_flight == 0)
    assert state.cancelled == 1


async def test_leaving_during_a_load_aborts_the_load() -> None:
    async with running(NodeConfig(models=MODELS, load_overhead_s=60)) as sim, client(sim.url) as ollama:
        reading = asyncio.create_task(read(ollama, body=chat()))
        await sim.until(lambda state: state.placing == "chat:latest")
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await sim.until(lambda state: state.aborted_loads == 1)


async def test_the_models_on_disk_and_in_memory_are_told(sim: SimServer) -> None:
    async with client(sim.url) as ollama:
        assert await ollama.loaded_models() == ()
        await read(ollama, body=chat())
        disk = {model.name: model for model in await ollama.disk_models()}
        loaded = await ollama.loaded_models()
        assert await ollama.version() == "0.33.0"
        assert "tools" in (await ollama.shown("chat")).capabilities
        assert (await ollama.shown("chat")).prompt_bytes == 0
    assert set(disk) == {"chat:latest", "thinker:latest", "embed:latest"}
    assert disk["chat:latest"].size > 10**9
    assert [model.name for model in loaded] == ["chat:latest"]
    assert loaded[0].digest == disk["chat:latest"].digest
    assert loaded[0].size_vram > 0
    assert loaded[0].context_length == 4096


async def test_what_a_modelfile_puts_before_every_prompt_is_measured() -> None:
    models = tuple(msgspec.structs.replace(model, system="Ahé.") for model in parse_models("chat=1GB"))
    async with running(NodeConfig(models=models)) as sim, client(sim.url) as ollama:
        assert (await ollama.shown("chat")).prompt_bytes == 5
        final = (await read(ollama, body=chat()))[-1]
        assert isinstance(final, Finished)
    bare = parse_models("chat=1GB")
    async with running(NodeConfig(models=bare)) as sim, client(sim.url) as ollama:
        without = (await read(ollama, body=chat()))[-1]
        assert isinstance(without, Finished)
    assert final.final["prompt_eval_count"] > without.final["prompt_eval_count"], "and it stands there"


# -- bytes -----------------------------------------------------------------------------------------------------------------


async def answered(*parts: bytes) -> tuple[list[Event], Ending]:
    async def script(connection: Connection) -> None:
        await connection.request()
        for part in parts:
            await connection.send(part)

    async with scripted(script) as server, client(server.url) as ollama:
        return await read(ollama)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([OK, chunk(token("a")), chunk(token("b")[:20])], id="half a line"),
        pytest.param([OK, chunk(token("a")), chunk(token("b"))[:-15]], id="death inside a chunk"),
        pytest.param([OK, chunk(token("a"))], id="death between chunks"),
        pytest.param([OK, chunk(token("a")), LAST_CHUNK], id="a proper end without done"),
        pytest.param([OK, chunk(token("a")), chunk(b"<html></html>\n"), LAST_CHUNK], id="nonsense for a line"),
        pytest.param([OK, chunk(token("a")), chunk(DONE[:-9]), LAST_CHUNK], id="half of the final line"),
    ],
)
async def test_an_answer_cut_off_is_broken_and_keeps_its_whole_lines(parts: list[bytes]) -> None:
    events, ending = await answered(*parts)
    assert text_of(events) == "a"
    assert isinstance(ending, Broke)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([], id="nothing at all"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Le"], id="half of the headers"),
        pytest.param([b"SSH-2.0-OpenSSH\r\n\r\n"], id="another protocol"),
        pytest.param([b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20000 + b"\r\n\r\n"], id="endless headers"),
        pytest.param([OK, b"zz\r\nnonsense"], id="nonsense for a chunk size"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], id="an empty body"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"], id="less than announced"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n<html>no</ht"], id="a page"),
    ],
)
async def test_what_is_no_answer_is_broken(parts: list[bytes]) -> None:
    """The transport lets some of aiohttp's errors through; none of them may get past the client."""
    events, ending = await answered(*parts)
    assert events == []
    assert isinstance(ending, Broke)
    assert "127.0.0.1" not in ending.text


async def test_a_reset_is_broken() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))

    async with scripted(script) as server, client(server.url) as ollama:
        events, ending = await read(ollama)
    assert events == []
    assert isinstance(ending, Broke)


async def test_a_node_that_is_not_there_is_broken_and_its_address_is_not_told() -> None:
    """The text becomes the job's fault, which clients read."""
    async with client("http://127.0.0.1:9") as ollama:
        _, ending = await read(ollama)
        assert ending == Broke("the node's Ollama cannot be reached")
        with pytest.raises(NodeAway):
            await ollama.version()


async def test_what_comes_after_the_terminal_marker_cannot_spoil_the_answer() -> None:
    """`done` was seen: a node that dies right after it has answered all the same."""
    events, ending = await answered(OK, chunk(token("a")), chunk(DONE))
    assert text_of(events) == "a"
    assert isinstance(ending, Finished)


async def test_a_body_that_never_ends_after_the_terminal_marker_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ollama_module, "END_OF_BODY_S", 0.05)

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK + chunk(token("a")) + chunk(DONE))
        await connection.closed()

    async with scripted(script) as server, client(server.url) as ollama:
        _, ending = await read(ollama)
    assert isinstance(ending, Finished)


async def test_the_body_of_an_error_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The status is known; a run must not hang until its deadline for want of a text."""
    monkeypatch.setattr(ollama_module, "ERROR_BODY_S", 0.05)

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b'HTTP/1.1 503 Busy\r\nContent-Length: 500\r\n\r\n{"error":')
        await connection.closed()

    async with scripted(script) as server, client(server.url) as ollama:
        _, ending = await read(ollama)
    assert ending == Rejected(503, "an answer that is not Ollama's")


async def test_an_endless_error_is_read_only_to_a_limit() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await connection.send(chunk(b"x" * 65536))

    async with scripted(script) as server, client(server.url) as ollama:
        _, ending = await read(ollama)
    assert isinstance(ending, Rejected)


async def test_a_second_request_uses_the_first_ones_connection() -> None:
    """After a whole answer, and after an error; else every job pays for a connection."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK + chunk(token("a")) + chunk(DONE) + LAST_CHUNK)
        await connection.request()
        await connection.send(b'HTTP/1.1 404 No\r\nContent-Length: 14\r\n\r\n{"error":"no"}')
        await connection.request()
        await connection.send(OK + chunk(token("b") + DONE) + LAST_CHUNK)

    async with scripted(script) as server, client(server.url) as ollama:
        endings = [(await read(ollama))[1] for _ in range(3)]
        assert len(server.connections) == 1
    assert [type(ending) for ending in endings] == [Finished, Rejected, Finished]


async def test_a_broken_connection_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama_module, "END_OF_BODY_S", 0.05)

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK + chunk(token("a")) + chunk(b'{"error":"gone"}\n'))
        await connection.closed()

    async with scripted(script) as server, client(server.url) as ollama:
        async with asyncio.timeout(5):
            await read(ollama)
            await read(ollama)
        assert len(server.connections) == 2


async def test_requests_name_the_nodes_own_host_and_carry_no_cookies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loopback Ollama refuses foreign Host names (ollama-facts.md §2.7); a cookie would tie two jobs together."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")

    async def script(connection: Connection) -> None:
        while True:
            await connection.request()
            head = OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: session=1; Path=/\r\n\r\n")
            await connection.send(head + chunk(DONE) + LAST_CHUNK)

    async with scripted(script) as server:
        url = server.url.replace("127.0.0.1", "localhost")  # cookies of bare addresses are not kept anyway
        async with client(url) as ollama:
            await read(ollama)
            await read(ollama)
            heads = [head.lower() for connection in server.connections for head in connection.heads]
        assert len(heads) == 2
        for head in heads:
            assert b"\r\nhost: " + url.removeprefix("http://").encode() in head
            assert b"\r\ncookie:" not in head
            assert b"\r\nauthorization:" not in head
            assert head.startswith(b"post /api/chat http/1.1\r\n")


async def test_a_large_request_arrives_whole_with_its_length() -> None:
    heads: list[bytes] = []

    async def script(connection: Connection) -> None:
        heads.append(await connection.request())
        await connection.send(OK + chunk(DONE) + LAST_CHUNK)

    async with scripted(script) as server, client(server.url) as ollama:
        _, ending = await read(ollama, body=b" " * (3 << 20))
    assert isinstance(ending, Finished)
    assert b"\r\ncontent-length: 3145728\r\n" in heads[0].lower()
    assert b"transfer-encoding" not in heads[0].lower()


async def test_leaving_while_a_large_request_is_still_being_sent_closes_the_connection() -> None:
    """Images make bodies of megabytes, and a stopped node does not read them."""
    closed = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.reader.readuntil(b"\r\n\r\n")
        entered.set()
        await leaving.wait()
        await connection.closed()
        closed.set()

    entered, leaving = asyncio.Event(), asyncio.Event()
    async with scripted(script) as server, client(server.url) as ollama:
        reading = asyncio.create_task(read(ollama, body=b" " * (32 << 20)))
        await asyncio.wait_for(entered.wait(), 5)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(reading), 5)
        leaving.set()
        await asyncio.wait_for(closed.wait(), 5)


async def test_more_requests_than_slots_are_not_held_back() -> None:
    """Two routers may overlap, and the inventory asks besides: a request must not wait for a connection."""
    together = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        if len(server.connections) == 4:
            together.set()
        await together.wait()
        await connection.send(OK + chunk(DONE) + LAST_CHUNK)

    async with scripted(script) as server, client(server.url, connections=1) as ollama:
        endings = await asyncio.gather(*(read(ollama) for _ in range(4)))
    assert all(isinstance(ending, Finished) for _, ending in endings)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"models":5}',
        b'{"models":["x"]}',
        b'{"models":[{"name":5}]}',
        b'{"models":[{"size":"big"}]}',
        b"{}",
    ],
)
async def test_an_inventory_that_is_not_ollamas_is_a_problem_of_the_node_not_of_the_worker(body: bytes) -> None:
    """Whatever stands at that address, the heartbeat stays readable and the worker alive."""

    async def script(connection: Connection) -> None:
        while True:
            await connection.request()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with scripted(script) as server, client(server.url) as ollama:
        with pytest.raises(NodeAway):
            await ollama.disk_models()
        with pytest.raises(NodeAway):
            await ollama.loaded_models()


@pytest.mark.parametrize("answer", [b"SSH-2.0\r\n\r\n", b"", b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"])
async def test_a_node_that_does_not_speak_http_is_away(answer: bytes) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(answer)

    async with scripted(script) as server, client(server.url) as ollama:
        with pytest.raises(NodeAway):
            await ollama.version()


async def test_what_older_versions_leave_out_or_null_is_empty() -> None:
    body = b'{"models":[{"model":"m:latest","details":null,"capabilities":null,"size":null},{"name":"n"}]}'

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with scripted(script) as server, client(server.url) as ollama:
        models = await ollama.disk_models()
    assert [(model.name, model.size, model.capabilities) for model in models] == [("m:latest", 0, ()), ("n", 0, ())]


async def test_a_slow_inventory_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it trickles: the limit is on the whole answer."""
    monkeypatch.setattr(ollama_module, "INVENTORY_S", 0.1)

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await connection.send(b" ")
            await asyncio.sleep(0.01)

    async with scripted(script) as server, client(server.url) as ollama:
        with pytest.raises(NodeAway):
            await asyncio.wait_for(ollama.loaded_models(), 5)


async def test_the_clients_own_memory_of_a_stream_ends_with_it(sim: SimServer) -> None:
    """Nothing of a left stream stays behind: no task, no open connection."""
    sim.set_faults(Fault(FaultKind.HANG, after_tokens=2, count=0))
    async with client(sim.url) as ollama:
        before = asyncio.all_tasks()
        for _ in range(5):
            stream = ollama.stream(CHAT, chat("[[tokens=9]]"))
            async with asyncio.timeout(5), contextlib.aclosing(stream):
                async for _ in stream:
                    break  # as when publishing its first events is cancelled
        await eventually(lambda: sim.state.in_flight == 0)
        await eventually(lambda: asyncio.all_tasks() <= before)
