"""The process: its options, its start, and its ends."""

import asyncio
import contextlib
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

import pytest

from libs.ollama_sim.faults import FaultKind
from libs.ollama_sim.main import main, read_arguments
from tests.ollama_sim.sockets import connected, request

ENDLESS = request(
    "POST", "/api/chat", {"model": "llama3.2:3b", "messages": [{"role": "user", "content": "[[tokens=1000000]]"}]}
)


@contextlib.asynccontextmanager
async def process(*options: str) -> AsyncIterator[tuple[Process, int]]:
    """A node in a process of its own, and its port."""
    node = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "libs.ollama_sim", "--port", "0", *options, stdout=PIPE
    )
    assert node.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = (await node.stdout.readline()).decode()
        found = re.search(r":(\d+) with ", line)
        assert found is not None, line
        yield node, int(found[1])
    finally:
        if node.returncode is None:
            node.kill()
        await node.communicate()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_closes_all_connections_at_once(signum: signal.Signals) -> None:
    async with process("--time-scale", "20") as (node, port), connected("127.0.0.1", port) as wire:
        await wire.send(ENDLESS)
        await wire.line()
        node.send_signal(signum)
        rest = await wire.rest()
        async with asyncio.timeout(10):
            assert await node.wait() == 0

    assert not rest.endswith(b"0\r\n\r\n")


async def test_the_exit_fault_ends_the_process() -> None:
    options = ("--instant", "--faults", "exit:after_tokens=3")
    async with process(*options) as (node, port), connected("127.0.0.1", port) as wire:
        await wire.send(ENDLESS)
        rest = await wire.rest()
        async with asyncio.timeout(10):
            assert await node.wait() == 137

    assert rest.count(b'"done":false') == 3


def test_options_become_the_configuration() -> None:
    config, port = read_arguments(
        ["--port", "0", "--models", "m=1GB", "--slots", "4", "--vram", "8GB", "--keep-alive", "-1", "--faults", "busy"]
    )

    assert port == 0
    assert [model.name.short for model in config.models] == ["m:latest"]
    assert (config.slots, config.vram_bytes, config.default_keep_alive_s) == (4, 8 * 10**9, float("inf"))
    assert [fault.kind for fault in config.faults] == [FaultKind.BUSY]


def test_the_default_models_are_a_talker_a_thinker_and_an_embedder() -> None:
    config, _ = read_arguments([])

    assert [(model.can_think, model.can_embed) for model in config.models] == [
        (False, False),
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--models", "m"], "expected name=size"),
        (["--faults", "explode"], "explode"),
        (["--slots", "0"], "not above zero"),
        (["--vram", "much"], "expected a size"),
    ],
)
def test_a_bad_option_is_explained(options: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_arguments(options)

    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_the_help_teaches_models_directives_and_faults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])

    text = capsys.readouterr().out
    assert all(word in text for word in ("[[tokens=500]]", "template-open", "/sim/faults", "curl", *FaultKind))
