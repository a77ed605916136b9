"""A described machine as a client sees it: memory, rates, prefixes, and a clock that runs fast.

Durations in the answers are those of the node's timetable, so they can be compared exactly however busy this machine is.
"""

import asyncio
from typing import Any

import pytest

from libs.ollama_sim.answers import Piece, PieceKind
from libs.ollama_sim.faults import Fault, FaultKind
from libs.ollama_sim.generation import Generation, Order
from libs.ollama_sim.models import parse_models
from tests.ollama_sim.conftest import Start, Talker, text_of
from tests.ollama_sim.sockets import request

GIB = 2**30
MODELS = parse_models("small=2.25GB,usual=4.5GB,double=9GB,large=40GB,embed=100MB:embed:dim=8")
FAST = {"models": MODELS, "time_scale": 200.0, "vram_bytes": 24 * 10**9, "decode_tps": 50.0, "prefill_tps": 1000.0}
LONG = "word " * 800  # a thousand tokens
ENDLESS = {"model": "usual", "messages": [{"role": "user", "content": "[[tokens=1000000]]"}]}
BARE = {"small": 2.25, "usual": 4.5, "double": 9.0, "large": 40.0}


async def last_of(node: Talker, text: str, **fields: Any) -> dict[str, Any]:
    reply = await node.chat(text, **{"model": "usual", **fields})
    assert reply.status == 200, reply.body
    last: dict[str, Any] = reply.lines[-1]
    return last


async def loaded(node: Talker) -> dict[str, Any]:
    return {each["name"].split(":")[0]: each for each in (await node.send("GET", "/api/ps")).json["models"]}


@pytest.mark.parametrize(("model", "tps"), [("small", 100.0), ("usual", 50.0), ("double", 25.0)])
async def test_the_rates_in_the_last_line_are_those_of_the_machine(start: Start, model: str, tps: float) -> None:
    node: Talker = await start(**FAST)

    last = await last_of(node, LONG + "[[tokens=100]]", model=model)

    assert last["eval_count"] == 101
    assert last["eval_duration"] / 1e9 == pytest.approx(100 / tps, rel=1e-6)
    assert last["prompt_eval_duration"] / 1e9 == pytest.approx(last["prompt_eval_count"] / (20 * tps), rel=1e-6)


async def test_a_cold_load_takes_the_time_of_its_size_and_a_warm_one_none(start: Start) -> None:
    node: Talker = await start(**FAST, disk_gbps=0.5, load_overhead_s=1.0)
    sent = asyncio.get_running_loop().time()
    cold = await last_of(node, "[[tokens=2]]")
    passed = (asyncio.get_running_loop().time() - sent) * 200.0
    warm = await last_of(node, "[[tokens=2]]")

    assert 10.0 * 0.98 <= cold["load_duration"] / 1e9 <= cold["total_duration"] / 1e9 <= passed
    assert warm["load_duration"] < cold["load_duration"]


@pytest.mark.parametrize("time_scale", [1.0, 50.0, 5000.0])
async def test_the_parts_never_exceed_the_whole(start: Start, time_scale: float) -> None:
    node: Talker = await start(**{**FAST, "time_scale": time_scale, "decode_tps": 5000.0, "prefill_tps": 1e5})
    for tokens in (1, 2, 50):
        last = await last_of(node, f"[[tokens={tokens}]]")
        parts = last["load_duration"] + last["prompt_eval_duration"] + last["eval_duration"]
        assert parts <= last["total_duration"] + 3000  # each is rounded to a microsecond


async def test_waiting_for_a_slot_shows_only_in_the_whole(start: Start) -> None:
    node: Talker = await start(**FAST)
    await last_of(node, "[[tokens=1]]")
    clock = node.sim.node.pace.now
    async with node.open() as busy:
        await busy.send(request("POST", "/api/chat", ENDLESS))
        await busy.line()
        waiting = asyncio.create_task(last_of(node, "[[tokens=1]]"))
        await node.sim.until(lambda state: state.runners[0].waiting == 1)
        began, tokens = clock(), node.sim.state.tokens
        await node.sim.until(lambda state: state.tokens > tokens + 100)
        passed = clock() - began
        busy.writer.close()
        last = await waiting

    waited = last["total_duration"] - sum(last[f"{part}_duration"] for part in ("load", "prompt_eval", "eval"))
    assert waited / 1e9 >= passed
    assert last["eval_duration"] / 1e9 == pytest.approx(1 / 50.0)


async def test_a_node_never_runs_ahead_of_its_clock(start: Start) -> None:
    """Not even when a whole answer is due before a timer can ring."""
    node: Talker = await start(**FAST)
    await last_of(node, "[[tokens=1]]")
    (runner,) = node.sim.node.scheduler.runners.values()
    pieces = iter([Piece(PieceKind.TEXT, "llama")] * 19)
    answer = Generation(runner, Order(pieces, 1, None), node.sim.node.pace, node.sim.node.counters)

    assert [piece.text async for piece in answer.pieces()] == ["llama"] * 19
    assert answer.ended_ns <= node.sim.node.pace.now_ns() + 10**6


async def test_what_the_slot_has_costs_no_prefill(start: Start) -> None:
    node: Talker = await start(**FAST)
    turns = [{"role": "user", "content": LONG + "[[tokens=40]]"}]
    first = await node.chat(model="usual", messages=turns)
    cold = first.lines[-1]
    turns += [{"role": "assistant", "content": text_of(first)}, {"role": "user", "content": "More? [[tokens=2]]"}]
    second = (await node.chat(model="usual", messages=turns)).lines[-1]

    new = round(second["prompt_eval_duration"] / 1e9 * 1000)
    assert second["prompt_eval_count"] > cold["prompt_eval_count"] > 1000
    assert 0 < new < 30
    assert node.sim.state.prompt_tokens_read == cold["prompt_eval_count"] + new
    assert node.sim.state.prompt_tokens_reused == second["prompt_eval_count"] - new


async def test_a_conversation_is_found_again_in_its_slot_and_in_the_host_memory(start: Start) -> None:
    async def reads(slots: int, cache_mib: int) -> list[int]:
        node: Talker = await start(**FAST, slots=slots, cache_mib=cache_mib)
        read = []
        for text in ("a" + LONG, "b" + LONG, "a" + LONG):
            before = node.sim.state.prompt_tokens_read
            await last_of(node, text + "[[tokens=2]]")
            read.append(node.sim.state.prompt_tokens_read - before)
        return read

    for slots, cache_mib, is_found in ((1, 8192, True), (2, 0, True), (1, 0, False)):
        first, second, again = await reads(slots, cache_mib)
        assert first > 1000, (slots, cache_mib)
        assert second > 900, (slots, cache_mib)
        assert (again < 10) is is_found, (slots, cache_mib)


async def test_a_prefill_that_was_left_is_known_as_far_as_it_came(start: Start) -> None:
    node: Talker = await start(**{**FAST, "prefill_tps": 10.0, "default_num_ctx": 8192})
    await last_of(node, "[[tokens=1]]")
    async with node.open() as leaving:
        body = {"model": "usual", "messages": [{"role": "user", "content": LONG * 4}]}
        await leaving.send(request("POST", "/api/chat", body))
        (runner,) = node.sim.node.scheduler.runners.values()
        await node.sim.until(lambda state: len(runner.slots[0].held) > 400)
    await node.sim.until(lambda state: state.cancelled == 1)

    assert 400 < len(runner.slots[0].held) < 4 * len(LONG)


async def test_a_model_too_large_for_the_gpu_lies_partly_on_the_cpu_and_is_slow(start: Start) -> None:
    node: Talker = await start(**FAST)
    last = await last_of(node, "[[tokens=20]]", model="large")
    shown = (await loaded(node))["large"]

    share = shown["size_vram"] / shown["size"]
    assert 0.4 < share < 0.6
    expected = 4.5 / 40 / (share / 50.0 + (1 - share) / 6.0)
    assert 20 / (last["eval_duration"] / 1e9) == pytest.approx(expected, rel=1e-3)


async def test_a_machine_without_gpu_is_slow_and_says_so(start: Start) -> None:
    node: Talker = await start(**{**FAST, "vram_bytes": 0, "cpu_decode_tps": 5.0})
    last = await last_of(node, "[[tokens=10]]")
    await last_of(node, "[[tokens=1]]", model="double")
    shown = await loaded(node)

    assert 10 / (last["eval_duration"] / 1e9) == pytest.approx(5.0)
    assert {name: each["size_vram"] for name, each in shown.items()} == {"usual": 0, "double": 0}
    assert all(each["size"] > BARE[name] * 10**9 for name, each in shown.items())


async def test_layers_can_be_kept_off_the_gpu(start: Start) -> None:
    node: Talker = await start(**FAST)
    await last_of(node, "[[tokens=1]]", options={"num_gpu": 0})

    assert (await loaded(node))["usual"]["size_vram"] == 0


async def test_the_larger_model_evicts_what_it_does_not_fit_next_to(start: Start) -> None:
    node: Talker = await start(**FAST)
    for model in ("usual", "small", "double", "large"):
        await last_of(node, "[[tokens=1]]", model=model)
        shown = await loaded(node)
        assert sum(each["size_vram"] for each in shown.values()) <= 24 * 10**9
        if model == "double":  # 9 GB fit into four fifths of what the two small ones leave
            assert set(shown) == {"usual", "small", "double"}

    assert set(shown) == {"large"}


async def test_the_memory_decides_the_context_and_a_request_may_change_it(start: Start) -> None:
    node: Talker = await start(**{**FAST, "vram_bytes": 24 * GIB})
    seen = []
    for options in ({}, {"num_ctx": 8192}, {}, {"num_ctx": 32768}):
        await last_of(node, "[[tokens=1]]", options=options)
        seen.append((await loaded(node))["usual"]["context_length"])

    assert seen == [32768, 8192, 32768, 32768]
    assert node.sim.state.loads == 3


async def test_keep_alive_follows_the_clock(start: Start) -> None:
    """An hour and a quarter is a second and a bit."""
    node: Talker = await start(**{**FAST, "time_scale": 4000.0}, default_keep_alive_s=4500.0)
    await last_of(node, "[[tokens=1]]")
    assert await node.loaded() == ["usual:latest"]

    await node.sim.until(lambda state: not state.runners, within=20)
    assert node.sim.state.expirations == 1


async def test_an_embedding_takes_the_time_of_its_tokens(start: Start) -> None:
    node: Talker = await start(**{**FAST, "prefill_tps": 1.0, "time_scale": 100.0}, load_overhead_s=0.0)
    reply = await node.send("POST", "/api/embed", {"model": "embed", "input": "x" * 392})

    seconds = (reply.json["total_duration"] - reply.json["load_duration"]) / 1e9
    assert reply.json["prompt_eval_count"] == 100
    assert seconds >= 100 / 45 * 0.9


async def test_answers_at_once_share_the_machine_as_its_curve_says(start: Start) -> None:
    node: Talker = await start(**FAST, slots=2)
    await last_of(node, "[[tokens=1]]")
    async with node.open() as other:
        await other.send(request("POST", "/api/chat", ENDLESS))
        await other.line()
        last = await last_of(node, "[[tokens=50]]")

    assert 50 / (last["eval_duration"] / 1e9) == pytest.approx(50.0 * 0.6)


async def test_a_fast_clock_does_not_starve_who_asks_something_else(start: Start) -> None:
    """Half a million tokens a second cannot be made; whoever asks for the version is served all the same."""
    node: Talker = await start(**{**FAST, "time_scale": 10_000.0})
    async with node.open() as busy:
        whole = {
            **ENDLESS,
            "stream": False,
            "options": {"num_ctx": 32768},
        }  # nothing is sent, so nothing else pauses it
        await busy.send(request("POST", "/api/chat", whole))
        await node.sim.until(lambda state: state.tokens > 0, within=20)
        assert (await node.send("GET", "/api/version")).status == 200
        assert node.sim.state.in_flight == 1


async def test_prompts_read_at_the_same_time_share_the_machine(start: Start) -> None:
    node: Talker = await start(**{**FAST, "prefill_tps": 1.0}, slots=2)
    await last_of(node, "[[tokens=1]]")
    (runner,) = node.sim.node.scheduler.runners.values()
    async with node.open() as other:
        long = {"model": "usual", "messages": [{"role": "user", "content": LONG}]}
        await other.send(request("POST", "/api/chat", long))
        await node.sim.until(lambda state: runner.prefilling == 1)
        before = node.sim.state.prompt_tokens_read
        last = await last_of(node, "z" * 100 + "[[tokens=1]]")
        assert runner.prefilling == 1

    read = node.sim.state.prompt_tokens_read - before
    assert read > 20
    assert last["prompt_eval_duration"] / 1e9 == pytest.approx(2.0 * read)


async def test_who_comes_after_a_prefill_nobody_waits_for_waits_inside_the_engine(start: Start) -> None:
    node: Talker = await start(**FAST)
    await last_of(node, "[[tokens=1]]")
    (runner,) = node.sim.node.scheduler.runners.values()
    runner.slots[0].busy_until = node.sim.node.pace.now() + 60.0
    until = runner.slots[0].busy_until
    await last_of(node, "[[tokens=1]]")

    assert node.sim.node.pace.now() >= until


async def test_a_pull_shows_its_progress_and_brings_what_the_registry_offers(start: Start) -> None:
    node: Talker = await start(**{**FAST, "models": ()}, registry=MODELS, pull_gbps=0.1)

    began = node.sim.node.pace.now()
    lines = (await node.send("POST", "/api/pull", {"model": "usual"})).lines
    assert node.sim.node.pace.now() - began >= 45.0 * 0.99
    layers = [line for line in lines if line["status"].startswith("pulling ") and "total" in line]

    assert {line["total"] for line in layers} == {4_500_000_000}
    assert "completed" not in layers[0]
    done = [line["completed"] for line in layers[1:]]
    assert done == sorted(set(done))
    assert len(done) >= 10
    assert done[-1] == 4_500_000_000
    assert [line["status"] for line in lines[-3:]] == ["verifying sha256 digest", "writing manifest", "success"]
    assert (await last_of(node, "[[tokens=1]]"))["done"]


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_pull_of_what_the_registry_lacks_fails_after_the_first_line(start: Start, is_stream: bool) -> None:
    node: Talker = await start(models=(), registry=MODELS)

    reply = await node.send("POST", "/api/pull", {"model": "unknown", "stream": is_stream})

    assert reply.status == (200 if is_stream else 500)
    assert reply.lines[-1] == {"error": "pull model manifest: file does not exist"}
    assert (await node.send("GET", "/api/tags")).json["models"] == []


async def test_a_client_that_leaves_stops_its_pull(start: Start) -> None:
    node: Talker = await start(**{**FAST, "models": ()}, registry=MODELS, pull_gbps=0.0001)
    async with node.open() as leaving:
        await leaving.send(request("POST", "/api/pull", {"model": "usual"}))
        await leaving.line()
    await node.sim.until(lambda state: state.cancelled == 1)
    assert (await node.send("GET", "/api/tags")).json["models"] == []


async def test_loading_and_unloading_are_requests_of_their_own(start: Start) -> None:
    node: Talker = await start(**FAST)
    load = await node.send("POST", "/api/generate", {"model": "usual"})
    assert load.json["done_reason"] == "load"
    assert await node.loaded() == ["usual:latest"]

    unload = await node.send("POST", "/api/generate", {"model": "usual", "keep_alive": 0})
    assert unload.json["done_reason"] == "unload"
    await node.sim.until(lambda state: not state.runners)


async def test_a_slow_stream_is_as_slow_as_it_was_told(start: Start) -> None:
    node: Talker = await start(**FAST, faults=(Fault(FaultKind.TRICKLE, after_tokens=2, seconds=4.0),))
    last = await last_of(node, "[[tokens=6]]")

    assert last["eval_duration"] / 1e9 >= 4 * 4.0 * 0.9
