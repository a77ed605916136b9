"""Every kind of fault, as a client suffers it, and that the node is well afterwards."""

import asyncio
import json
from typing import Any

import pytest

from libs.ollama_sim.faults import Fault, FaultKind
from tests.ollama_sim.conftest import Start, Talker, text_of
from tests.ollama_sim.recordings import read_reply
from tests.ollama_sim.sockets import request

EOF_TEXT = "an error was encountered while running the model: unexpected EOF"


def ask(**fields: Any) -> bytes:
    body = {"model": "chat", "messages": [{"role": "user", "content": "[[tokens=20]]"}], **fields}
    return request("POST", "/api/chat", body)


async def suffer(node: Talker, *faults: Fault, raw: bytes | None = None) -> bytes:
    node.sim.set_faults(*faults)
    async with node.open() as wire:
        await wire.send(raw or ask())
        return await wire.rest()


async def is_well(node: Talker) -> bool:
    node.sim.set_faults()
    return bool(text_of(await node.chat()))


async def test_a_crash_in_the_stream_is_an_error_line_and_a_proper_end(node: Talker) -> None:
    reply = read_reply(await suffer(node, Fault(FaultKind.CRASH, after_tokens=4)))

    assert reply.is_complete
    assert len(reply.lines) == 5
    assert reply.lines[-1] == {"error": EOF_TEXT}
    assert await is_well(node)
    assert node.sim.state.loads == 2


async def test_a_crash_before_the_first_byte_is_a_500(node: Talker) -> None:
    reply = read_reply(await suffer(node, Fault(FaultKind.CRASH)))

    assert (reply.status, reply.json) == (500, {"error": EOF_TEXT})
    assert await is_well(node)


async def test_those_who_wait_for_the_slot_of_a_crashed_engine_are_told_at_once(start: Start) -> None:
    node: Talker = await start(time_scale=20.0, faults=(Fault(FaultKind.CRASH, after_tokens=2400),))
    async with node.open() as running, node.open() as waiting:
        await running.send(ask(messages=[{"role": "user", "content": "[[tokens=5000]]"}]))
        await running.line()
        await waiting.send(ask())
        reply = read_reply(await waiting.rest())

    assert (reply.status, reply.json) == (500, {"error": "llama-server process no longer running: unknown "})


async def test_the_dead_model_stays_listed_until_the_next_request(node: Talker) -> None:
    await suffer(node, Fault(FaultKind.CRASH, after_tokens=1))

    assert await node.loaded() == ["chat:latest"]


async def test_death_closes_inside_the_chunked_body(node: Talker) -> None:
    reply = read_reply(await suffer(node, Fault(FaultKind.DEATH, after_tokens=3)))

    assert not reply.is_complete
    assert len(reply.lines) == 3
    assert await suffer(node, Fault(FaultKind.DEATH)) == b""
    assert await is_well(node)


async def test_a_clean_end_without_done(node: Talker) -> None:
    reply = read_reply(await suffer(node, Fault(FaultKind.EOF, after_tokens=3)))
    assert reply.is_complete
    assert not any(line["done"] for line in reply.lines)

    whole = read_reply(await suffer(node, Fault(FaultKind.EOF, after_tokens=3), raw=ask(stream=False)))
    assert whole.json["done"] is False
    assert whole.json["message"]["content"]


async def test_half_a_line(node: Talker) -> None:
    reply = read_reply(await suffer(node, Fault(FaultKind.HALF_LINE, after_tokens=2)))

    *whole, half = reply.body.splitlines()
    assert len(whole) == 2
    assert not reply.is_complete
    with pytest.raises(ValueError, match=r"."):
        json.loads(half)


@pytest.mark.parametrize("tokens", [0, 2])
async def test_a_hang_holds_the_slot_until_the_client_leaves(start: Start, tokens: int) -> None:
    node: Talker = await start(faults=(Fault(FaultKind.HANG, after_tokens=tokens),))
    async with node.open() as wire:
        await wire.send(ask())
        await node.sim.until(lambda state: state.faults[0].fired and state.tokens == tokens)
        assert node.sim.state.runners[0].slots[0].is_busy
    await node.sim.until(lambda state: state.in_flight == 0)
    assert node.sim.state.cancelled == 1
    assert await is_well(node)


async def test_a_trickle_still_ends(start: Start) -> None:
    node: Talker = await start(time_scale=1000.0)
    reply = read_reply(await suffer(node, Fault(FaultKind.TRICKLE, after_tokens=2, seconds=5.0)))

    assert reply.lines[-1]["done"]
    assert reply.lines[-1]["eval_duration"] > 18 * 5e6


@pytest.mark.parametrize("tokens", [0, 3])
async def test_a_reset(node: Talker, tokens: int) -> None:
    node.sim.set_faults(Fault(FaultKind.RESET, after_tokens=tokens))
    async with node.open() as wire:
        await wire.send(ask())
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(wire.reader.read(-1), 5)
    assert await is_well(node)


@pytest.mark.parametrize(
    ("kind", "status", "content_type", "body"),
    [
        (FaultKind.BUSY, 503, "application/json; charset=utf-8", b"server busy"),
        (FaultKind.OPTION_ERROR, 500, "application/json; charset=utf-8", b"must be of type integer"),
        (FaultKind.HTML, 200, "text/html; charset=utf-8", b"<html>"),
        (FaultKind.EMPTY, 200, None, b""),
    ],
)
async def test_wrong_answers(node: Talker, kind: FaultKind, status: int, content_type: str | None, body: bytes) -> None:
    reply = read_reply(await suffer(node, Fault(kind)))

    assert (reply.status, reply.headers.get("content-type")) == (status, content_type)
    assert body in reply.body
    assert reply.is_complete
    assert await is_well(node)


async def test_accepted_and_never_answered(node: Talker) -> None:
    node.sim.set_faults(Fault(FaultKind.ACCEPT_HANG))
    async with node.open() as wire:
        await wire.send(ask())
        await node.sim.until(lambda state: state.in_flight == 1 and state.faults[0].fired == 1)
        assert not node.sim.state.runners
    await node.sim.until(lambda state: state.in_flight == 0)
    assert await is_well(node)


async def test_a_load_without_memory(node: Talker) -> None:
    reply = read_reply(await suffer(node, Fault(FaultKind.LOAD_OOM)))

    assert reply.status == 500
    assert "llama-server reported out-of-memory during startup" in reply.json["error"]
    assert await node.loaded() == []
    assert await is_well(node)


async def test_a_slow_load_shows_in_the_load_duration(start: Start) -> None:
    node: Talker = await start(time_scale=1000.0)
    reply = read_reply(await suffer(node, Fault(FaultKind.SLOW_LOAD, seconds=60.0)))

    assert reply.lines[-1]["load_duration"] >= 60e6


async def test_a_stuck_load_ends_when_its_client_leaves(node: Talker) -> None:
    node.sim.set_faults(Fault(FaultKind.STUCK_LOAD))
    async with node.open() as wire:
        await wire.send(ask())
        await node.sim.until(lambda state: state.placing)
    await node.sim.until(lambda state: state.aborted_loads == 1)
    assert await is_well(node)


async def test_faults_are_set_and_ended_over_http(node: Talker) -> None:
    faults = [{"kind": "busy", "count": 0}]
    assert (await node.send("POST", "/sim/faults", faults)).json == {"faults": 1}
    assert [(await node.chat()).status for _ in range(3)] == [503] * 3

    assert (await node.send("POST", "/sim/faults", [])).json == {"faults": 0}
    assert (await node.chat()).status == 200


async def test_a_fault_that_cannot_be_read_changes_nothing(node: Talker) -> None:
    node.sim.set_faults(Fault(FaultKind.BUSY))

    assert (await node.send("POST", "/sim/faults", [{"kind": "unheard-of"}])).status == 400
    assert [fault.kind for fault in node.sim.state.faults] == ["busy"]


async def test_a_fault_on_another_route(node: Talker) -> None:
    node.sim.set_faults(Fault(FaultKind.HTML, route="/api/ps"))

    assert (await node.send("GET", "/api/ps")).body.startswith(b"<html>")
    assert (await node.send("GET", "/api/ps")).json == {"models": []}
