"""The scheduler as a client sees it: who is loaded, who waits, who is sent away."""

import asyncio
from typing import Any

import pytest

from libs.ollama_sim.faults import Fault, FaultKind
from tests.ollama_sim.conftest import Start, Talker, text_of
from tests.ollama_sim.sockets import WITHIN_S, request

ENDLESS = "[[tokens=1000000]]"


def ask(model: str, text: str = "Hi", **fields: Any) -> bytes:
    return request("POST", "/api/chat", {"model": model, "messages": [{"role": "user", "content": text}], **fields})


async def test_a_model_is_invisible_until_it_is_loaded(start: Start) -> None:
    node: Talker = await start(faults=(Fault(FaultKind.STUCK_LOAD),))
    async with node.open() as wire:
        await wire.send(ask("chat"))
        await node.sim.until(lambda state: state.placing == "chat:latest")

        assert await node.loaded() == []


async def test_cold_models_load_one_after_the_other_while_loaded_ones_serve(start: Start) -> None:
    node: Talker = await start(faults=(Fault(FaultKind.STUCK_LOAD, model="second"),))
    await node.chat()
    async with node.open() as blocking, node.open() as waiting:
        await blocking.send(ask("second"))
        await node.sim.until(lambda state: state.placing == "second:latest")
        await waiting.send(ask("third"))
        await node.sim.until(lambda state: state.queued == 1)

        assert text_of(await node.chat())
        assert node.sim.state.queued == 1

        blocking.writer.close()
        assert (await waiting.line())["model"] == "third"
    assert node.sim.state.aborted_loads == 1


async def test_a_client_that_leaves_the_queue_keeps_its_place_until_its_turn(start: Start) -> None:
    node: Talker = await start(max_queue=1, faults=(Fault(FaultKind.STUCK_LOAD),))
    async with node.open() as blocking:
        await blocking.send(ask("chat"))
        await node.sim.until(lambda state: state.placing)
        async with node.open() as leaving:
            await leaving.send(ask("second"))
            await node.sim.until(lambda state: state.queued == 1)
        await node.sim.until(lambda state: state.cancelled == 1)

        assert (await node.chat(model="third")).status == 503
    await node.sim.until(lambda state: state.queued == 0 and state.placing is None)
    assert text_of(await node.chat(model="third"))


async def test_the_victim_is_the_idle_model_with_the_shortest_keep_alive(start: Start) -> None:
    node: Talker = await start(max_loaded=2)
    await node.chat(keep_alive=-1)
    await node.chat(model="second", keep_alive=600)
    await node.chat(model="third")

    assert sorted(await node.loaded()) == ["chat:latest", "third:latest"]
    assert node.sim.state.evictions == 1


async def test_what_does_not_fit_next_to_others_evicts_them(start: Start) -> None:
    node: Talker = await start(vram_bytes=4 * 10**9)
    await node.chat()
    await node.chat(model="second")

    assert await node.loaded() == ["second:latest"]


async def test_a_cold_model_waits_for_a_busy_victim(start: Start) -> None:
    node: Talker = await start(max_loaded=1, time_scale=100.0)
    async with node.open() as busy, node.open() as cold:
        await busy.send(ask("chat", ENDLESS))
        await busy.line()
        await cold.send(ask("second"))
        await node.sim.until(lambda state: state.evictions == 1)
        await busy.line()
        assert await node.loaded() == ["chat:latest"]

        busy.writer.close()
        assert (await cold.line())["model"] == "second"
    assert await node.loaded() == ["second:latest"]


async def test_a_victim_nobody_waits_for_any_more_goes_all_the_same(start: Start) -> None:
    node: Talker = await start(max_loaded=1, time_scale=100.0)
    async with node.open() as busy:
        await busy.send(ask("chat", ENDLESS))
        await busy.line()
        async with node.open() as cold:
            await cold.send(ask("second"))
            await node.sim.until(lambda state: state.evictions == 1)
        await node.sim.until(lambda state: state.cancelled == 1)
    await node.sim.until(lambda state: not state.runners)
    assert node.sim.state.loads == 1


@pytest.mark.parametrize(("has_bug", "survives"), [(True, True), (False, False)])
async def test_a_request_with_a_keep_alive_can_revive_a_victim(start: Start, has_bug: bool, survives: bool) -> None:
    """Bug 17408: the cold request then waits as long as the victim stays loaded."""
    node: Talker = await start(max_loaded=1, time_scale=100.0, has_bug_17408=has_bug)
    async with node.open() as busy, node.open() as cold:
        await busy.send(ask("chat", ENDLESS))
        await busy.line()
        await cold.send(ask("second"))
        await node.sim.until(lambda state: state.evictions == 1)
        await node.send("POST", "/api/generate", {"model": "chat", "keep_alive": "1h"})

        busy.writer.close()
        await node.sim.until(lambda state: state.cancelled == 1)
        if survives:
            assert await node.loaded() == ["chat:latest"]
            assert node.sim.state.placing == "second:latest"
        else:
            assert (await cold.line())["model"] == "second"


async def test_another_context_reloads_and_so_does_none(node: Talker) -> None:
    for options in ({"num_ctx": 8192}, {"num_ctx": 8192}, {}):
        await node.chat(options=options)

    assert node.sim.state.loads == 2
    assert (await node.send("GET", "/api/ps")).json["models"][0]["context_length"] == 4096


async def test_slots_are_given_first_come_first_served(start: Start) -> None:
    node: Talker = await start(slots=2, time_scale=100.0)
    async with node.open() as first, node.open() as second, node.open() as third, node.open() as fourth:
        for wire in (first, second):
            await wire.send(ask("chat", ENDLESS))
            await wire.line()
        await third.send(ask("chat", ENDLESS))
        await node.sim.until(lambda state: state.runners[0].waiting == 1)
        await fourth.send(ask("chat", "[[tokens=3]]"))
        await node.sim.until(lambda state: state.runners[0].waiting == 2)

        first.writer.close()
        await third.line()
        assert node.sim.state.runners[0].waiting == 1

        second.writer.close()
        assert (await fourth.line())["model"] == "chat"


async def test_the_queue_for_a_loaded_model_has_no_bound(start: Start) -> None:
    node: Talker = await start(max_queue=1, time_scale=1000.0)
    await node.chat("[[tokens=1]]")
    replies = await asyncio.gather(*(node.chat("[[tokens=5]]") for _ in range(20)))

    assert {reply.status for reply in replies} == {200}


async def test_keep_alive_runs_out_sticks_and_can_be_for_ever(start: Start) -> None:
    node: Talker = await start()
    await node.chat(keep_alive="50ms")
    await node.chat()  # sticks
    await node.sim.until(lambda state: not state.runners)
    assert node.sim.state.expirations == 1

    await node.chat(keep_alive=-1)
    (loaded,) = (await node.send("GET", "/api/ps")).json["models"]
    assert loaded["expires_at"] > "2200"

    await node.chat(keep_alive=0)
    await node.sim.until(lambda state: not state.runners)


async def test_an_unload_waits_for_the_answer_that_is_being_given(start: Start) -> None:
    node: Talker = await start(time_scale=100.0)
    async with node.open() as busy:
        await busy.send(ask("chat", ENDLESS))
        await busy.line()
        reply = await node.send("POST", "/api/generate", {"model": "chat", "keep_alive": 0})
        assert reply.json["done_reason"] == "unload"
        await busy.line()
        assert await node.loaded() == ["chat:latest"]
    await node.sim.until(lambda state: not state.runners)


async def test_expiry_slides_only_until_the_first_answer_has_ended(start: Start) -> None:
    node: Talker = await start(time_scale=100.0)

    async def expires_at() -> str:
        return str((await node.send("GET", "/api/ps")).json["models"][0]["expires_at"])

    async with node.open() as busy:
        await busy.send(ask("chat", ENDLESS))
        await busy.line()
        assert await expires_at() != await expires_at()
    await node.sim.until(lambda state: state.runners[0].users == 0)
    assert await expires_at() == await expires_at()


async def test_nothing_is_sent_before_the_first_token(start: Start) -> None:
    node: Talker = await start(faults=(Fault(FaultKind.HANG),))
    async with node.open() as wire:
        await wire.send(ask("chat"))
        await node.sim.until(lambda state: state.faults[0].fired == 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await wire.reader.read(1)


async def test_leaving_frees_the_slot_for_the_next(start: Start) -> None:
    node: Talker = await start(time_scale=100.0)
    async with node.open() as leaving:
        await leaving.send(ask("chat", ENDLESS))
        await leaving.line()
    async with asyncio.timeout(WITHIN_S):
        assert text_of(await node.chat("[[tokens=2]]"))

    assert node.sim.state.cancelled == 1
    assert node.sim.state.in_flight == 0


async def test_leaving_the_wait_for_a_slot_disturbs_nobody(start: Start) -> None:
    node: Talker = await start(time_scale=100.0)
    async with node.open() as busy, node.open() as patient:
        await busy.send(ask("chat", ENDLESS))
        await busy.line()
        async with node.open() as leaving:
            await leaving.send(ask("chat"))
            await node.sim.until(lambda state: state.runners[0].waiting == 1)
            await patient.send(ask("chat"))
            await node.sim.until(lambda state: state.runners[0].waiting == 2)
        await node.sim.until(lambda state: state.runners[0].waiting == 1)
        await busy.line()

        busy.writer.close()
        assert (await patient.line())["model"] == "chat"


async def test_an_engine_finishes_a_piece_of_a_prefill_nobody_waits_for(start: Start) -> None:
    """The next request has the slot at once, but the engine only half a (simulated) second later."""
    node: Talker = await start(time_scale=10.0, prefill_tps=10.0, default_num_ctx=32768)
    await node.chat("[[tokens=1]]")
    async with node.open() as leaving:
        await leaving.send(ask("chat", "long " * 2000))
        await node.sim.until(lambda state: state.runners[0].slots[0].is_busy)
    await node.sim.until(lambda state: not state.runners[0].slots[0].is_busy)

    (runner,) = node.sim.node.scheduler.runners.values()
    assert 0 < runner.slots[0].busy_until - node.sim.node.pace.now() <= 0.5


async def test_half_closing_counts_as_leaving_but_the_body_ends_properly(start: Start) -> None:
    node: Talker = await start(time_scale=100.0)
    async with node.open() as wire:
        await wire.send(ask("chat", ENDLESS))
        await wire.line()
        wire.writer.write_eof()
        rest = await wire.rest()

    assert rest.endswith(b"\r\n0\r\n\r\n")
    assert b'"done":true' not in rest
    assert node.sim.state.cancelled == 1
