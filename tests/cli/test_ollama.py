"""OLLAMA_HOST, names of nodes, and which nodes there are."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.cli.failures import CommandFailed
from libs.cli.up.ollama import Answer, Fleet, Node, ask, choose_fleet, decide, name_nodes, parse_host, simulated_nodes
from libs.common.contracts.subjects import TOKEN


@pytest.mark.parametrize(
    ("text", "url"),
    [
        # Ollama's own table (envconfig/config_test.go), as its client reaches it
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":1234", "http://127.0.0.1:1234"),
        ("1.2.3.4:1234", "http://1.2.3.4:1234"),
        ("example.com", "http://example.com:11434"),
        ("example.com:1234", "http://example.com:1234"),
        ("http://1.2.3.4", "http://1.2.3.4:80"),
        ("http://example.com:1234", "http://example.com:1234"),
        ("https://example.com", "https://example.com:443"),
        ("https://1.2.3.4:1234", "https://1.2.3.4:1234"),
        ("example.com/", "http://example.com:11434"),
        ("https://example.com/ollama", "https://example.com:443/ollama"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:1337", "http://[::1]:1337"),
        ("::1", "http://[::1]:11434"),
        (' "1.2.3.4:1234" ', "http://1.2.3.4:1234"),
        ("'1.2.3.4'", "http://1.2.3.4:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:1234", "http://127.0.0.1:1234"),
        ("[::]:1234", "http://127.0.0.1:1234"),
    ],
)
def test_a_host_is_read_as_ollama_reads_it(text: str, url: str):
    assert parse_host(text) == url


@pytest.mark.parametrize("text", ["ftp://x", "host:0", "host:66666", "host:abc", "a b", "http://us er:1"])
def test_what_is_no_address_is_refused_as_wrong_usage(text: str):
    with pytest.raises(CommandFailed) as failure:
        parse_host(text)

    assert failure.value.code == "usage"
    assert text in str(failure.value)


def test_nodes_are_named_after_host_and_unusual_port():
    urls = [
        "http://127.0.0.1:11434",
        "http://gpu1:11434",
        "http://gpu1:11500",
        "http://10.0.0.7:11434",
        "https://o.example:443",
    ]

    assert name_nodes(urls) == ["local", "gpu1", "gpu1-11500", "10-0-0-7", "o-example-443"]


_hosts = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,80}[a-z0-9])?", fullmatch=True) | st.just("[::1]") | st.just("router")


@given(st.lists(st.tuples(_hosts, st.integers(1, 65535)), max_size=12))
def test_names_are_unique_subject_tokens_that_leave_room_for_a_prefix(addresses: list[tuple[str, int]]):
    names = name_nodes([f"http://{host}:{port}" for host, port in addresses])

    assert len(set(names)) == len(names)
    assert all(TOKEN.fullmatch(f"worker-{name}") for name in names)
    assert "router" not in names


def test_simulated_nodes_hold_different_models_and_one_of_them_embeds():
    first, second = simulated_nodes(2, None)

    assert first.sim_models != second.sim_models
    assert ":embed" in first.sim_models
    assert (first.name, second.name, first.slots) == ("sim-a", "sim-b", 4)


def test_an_ollama_with_models_is_used():
    fleet = decide("http://127.0.0.1:11434", Answer(version="0.9", models={"a:1b": 5}), 2, None, asked_for=False)

    assert fleet == Fleet(
        nodes=(Node(name="local", url="http://127.0.0.1:11434", slots=2),),
        remarks=("Found Ollama 0.9 at http://127.0.0.1:11434 with 1 model.",),
        sizes={"a:1b": 5},
    )
    assert fleet.expected_models == {"a:1b"}


@pytest.mark.parametrize(
    ("answer", "asked_for", "said"),
    [
        (Answer(version="0.9", models={}), False, "has no model yet; `ollama pull"),
        (None, True, "OLLAMA_HOST points to"),
        (None, False, "No Ollama answers at"),
    ],
)
def test_without_a_usable_ollama_nodes_are_simulated_and_that_is_said(
    answer: Answer | None, asked_for: bool, said: str
):
    fleet = decide("http://127.0.0.1:11434", answer, 1, 3, asked_for=asked_for)

    assert [node.simulated for node in fleet.nodes] == [True, True]
    assert [node.slots for node in fleet.nodes] == [3, 3]
    assert said in fleet.remarks[0]
    assert "made up" in fleet.remarks[-1]
    assert fleet.expected_models == {"llama3.2:3b", "nomic-embed-text:latest", "qwen3:4b"}


@contextlib.asynccontextmanager
async def _ollama(answers: dict[str, bytes]) -> AsyncIterator[str]:
    """A server that knows two routes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readline()).split()[1].decode()
        while (await reader.readline()).strip():
            pass
        body = answers.get(path)
        writer.write(b"HTTP/1.0 %d x\r\n\r\n%b" % (200 if body is not None else 404, body or b""))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_an_ollama_is_recognised_by_its_version_and_tags():
    tags = json.dumps({"models": [{"name": "a:1b", "size": 5, "details": {}}]}).encode()
    async with _ollama({"/api/version": b'{"version": "0.9"}', "/api/tags": tags}) as url:
        assert await ask(url) == Answer(version="0.9", models={"a:1b": 5})
    async with _ollama({"/api/version": b'{"version": "0.9"}', "/api/tags": b'{"models": null}'}) as url:
        assert await ask(url) == Answer(version="0.9", models={})


@pytest.mark.parametrize("answers", [{}, {"/api/version": b"<html>"}, {"/api/version": b"{}"}])
async def test_another_server_is_no_ollama(answers: dict[str, bytes]):
    async with _ollama(answers) as url:
        assert await ask(url) is None


async def test_named_nodes_and_simulated_ones_stand_side_by_side():
    tags = b'{"models": [{"name": "a:1b"}]}'
    async with _ollama({"/api/version": b'{"version": "0.9"}', "/api/tags": tags}) as url:
        fleet = await choose_fleet([url, "127.0.0.1:9"], 1, None, {"OLLAMA_NUM_PARALLEL": "3"})

    assert [(node.reachable, node.slots, node.simulated) for node in fleet.nodes] == [
        (True, 3, False),
        (False, 3, False),
        (True, 4, True),
    ]
    assert "takes part as soon as one does" in fleet.remarks[1]


async def test_the_same_node_twice_is_refused():
    with pytest.raises(CommandFailed, match="twice"):
        await choose_fleet(["127.0.0.1:9", "0.0.0.0:9"], None, None, {})


async def test_ollama_host_decides_where_to_look():
    async with _ollama({"/api/version": b'{"version": "0.9"}', "/api/tags": b'{"models": [{"name": "a:1b"}]}'}) as url:
        fleet = await choose_fleet([], None, None, {"OLLAMA_HOST": url.removeprefix("http://")})

    assert [node.url for node in fleet.nodes] == [url]
