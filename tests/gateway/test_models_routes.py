"""`/models` and `/nodes`: policies by compare-and-set, and work on a node's models with its progress."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Conflict, NoResponders
from libs.common.bus.link import Message
from libs.common.contracts import subjects
from libs.common.contracts.catalog import (
    ModelPolicy,
    decode_model_policy,
    decode_node_policy,
    model_record,
    node_record,
)
from libs.common.contracts.codec import encode
from libs.common.contracts.control import ModelAnswer, ModelOrder, ModelWork, decode_model_order
from libs.common.contracts.nodes import DiskModel, Heartbeat, LoadedModel
from services.gateway import fleet_models, node_work
from tests.gateway.running import MODEL, Gateway
from tests.gateway.scripted import BOOT, NODE
from tests.support.waiting import eventually

Alice = httpx.AsyncClient
HF = "hf.co/Org/Name-GGUF:Q4_K_M"


async def beat(bus: Bus, node: str, *models: str, boot: str = BOOT, **more: Any) -> None:
    said = Heartbeat(
        node=node, boot=boot, beat=1, changes=0, slots=1, models=tuple(DiskModel(name=m, size=5, digest=m) for m in models),
        **more,
    )  # fmt: skip
    await Bucket(bus, "nodes").put(node, encode(said))


async def nodes_of(alice: Alice) -> dict[str, Any]:
    return {node["name"]: node for node in (await alice.get("/nodes")).json()["nodes"]}


async def models_of(alice: Alice) -> dict[str, Any]:
    return {model["name"]: model for model in (await alice.get("/models")).json()["models"]}


async def knows(alice: Alice, node: str) -> None:
    async def known() -> bool:
        return node in await nodes_of(alice)

    await eventually(known)


@contextlib.asynccontextmanager
async def node_that_says(
    bus: Bus, answer: Callable[[ModelOrder], ModelAnswer | None], node: str = NODE, boot: str = BOOT
) -> AsyncIterator[list[ModelOrder]]:
    asked: list[ModelOrder] = []

    async def receive(message: Message) -> bytes | None:
        asked.append(decode_model_order(message.data))
        said = answer(asked[-1])
        return None if said is None else encode(said)

    serving = await bus.serve(subjects.worker(node, boot, "model"), receive)
    await bus.api("INFO")  # the subscription stands once this has come back
    try:
        yield asked
    finally:
        await serving.stop()


def steps(*answers: ModelAnswer) -> Callable[[ModelOrder], ModelAnswer]:
    left = list(answers)
    return lambda order: left.pop(0) if len(left) > 1 else left[0]


RUNNING = ModelAnswer(state=ModelWork.RUNNING, status="pulling aa", completed=1, total=4)
DONE = ModelAnswer(state=ModelWork.DONE, status="pulled", completed=4, total=4)
FAILED = ModelAnswer(state=ModelWork.FAILED, status="the node's Ollama says: no space left on device")


# -- policies ------------------------------------------------------------------------------------------------------------------


async def test_a_policy_is_written_read_and_forgotten(alice: Alice, bus: Bus) -> None:
    answer = await alice.put(f"/models/{MODEL}/policy", json={"pin": [NODE], "num_ctx": 8192})
    wanted = {"pins": [NODE], "num_ctx": 8192, "keep_alive": None, "on_cpu": "auto"}
    assert (answer.status_code, answer.json()) == (200, {"name": MODEL, "policy": wanted})
    stored, _ = await Bucket(bus, "models").get(model_record(MODEL))
    assert stored is not None
    assert decode_model_policy(stored) == ModelPolicy(name=MODEL, pins=(NODE,), num_ctx=8192)

    async def listed() -> bool:
        return (await models_of(alice))[MODEL]["policy"] == wanted

    await eventually(listed)
    assert (await alice.delete(f"/models/{MODEL}/policy")).status_code == 200
    assert (await Bucket(bus, "models").get(model_record(MODEL)))[0] is None

    async def forgotten() -> bool:
        return (await models_of(alice))[MODEL]["policy"]["pins"] == []

    await eventually(forgotten)
    gone = await alice.delete(f"/models/{MODEL}/policy")
    assert (gone.status_code, gone.json()["code"]) == (404, "not_found")


async def test_names_with_slashes_and_colons_are_taken_in_every_spelling(alice: Alice, bus: Bus) -> None:
    await beat(bus, "n2", HF)
    await knows(alice, "n2")
    for path in (HF, HF.replace("/", "%2F").replace(":", "%3A"), HF.lower()):
        answer = await alice.put(f"/models/{path}/policy", json={"keep_alive": "1h"})
        assert (answer.status_code, answer.json()["name"]) == (200, HF.lower()), answer.text
    assert len((await bus.api("STREAM.INFO.KV_models", {"subjects_filter": ">"}))["state"]["subjects"]) == 1


async def test_writers_at_the_same_time_lose_nothing(alice: Alice, bus: Bus) -> None:
    names = [f"n{n}" for n in range(5)]
    for name in names:
        await beat(bus, name, MODEL)
        await knows(alice, name)
    answers = await asyncio.gather(*(alice.put(f"/models/{MODEL}/policy", json={"pin": [name]}) for name in names))
    assert [answer.status_code for answer in answers] == [200] * 5
    stored, revision = await Bucket(bus, "models").get(model_record(MODEL))
    assert stored is not None
    assert set(decode_model_policy(stored).pins) == set(names)
    with pytest.raises(Conflict):
        await Bucket(bus, "models").delete(model_record(MODEL), expected=revision - 1)


async def test_what_is_not_there_is_a_404_that_says_what_is(alice: Alice, bus: Bus) -> None:
    unknown = await alice.put("/models/nothing:1b/policy", json={"num_ctx": 8192})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "model_not_found")
    assert MODEL in unknown.json()["models"]
    strange = await alice.put(f"/models/{MODEL}/policy", json={"pin": ["nowhere"]})
    assert (strange.status_code, strange.json()["nodes"]) == (404, [NODE])
    assert strange.headers["content-type"] == "application/problem+json"
    await beat(bus, "n2", "other:1")
    await knows(alice, "n2")
    elsewhere = await alice.put(f"/models/{MODEL}/policy", json={"pin": ["n2"]})
    assert elsewhere.status_code == 404
    assert f"arriero models pull {MODEL} --node n2" in elsewhere.json()["detail"]
    assert (await Bucket(bus, "models").get(model_record(MODEL))) == (None, 0)
    for method, path, body in (
        ("PUT", "/nodes/nowhere/policy", {"draining": True}),
        ("POST", "/nodes/nowhere/models", {"op": "pull", "model": "m:1"}),
    ):
        answer = await alice.request(method, path, json=body)
        assert (answer.status_code, answer.json()["nodes"]) == (404, ["n2", NODE] if NODE > "n2" else [NODE, "n2"])


async def test_what_is_wrong_is_a_400_with_its_place(alice: Alice) -> None:
    for method, path, body, place in (
        ("PUT", f"/models/{MODEL}/policy", {"num_ctx": "many"}, "num_ctx"),
        ("PUT", "/models/a%20b/policy", {"num_ctx": 8192}, "model"),
        ("PUT", f"/nodes/{NODE}/policy", {"draining": "yes"}, "draining"),
        ("POST", f"/nodes/{NODE}/models", {"op": "eat", "model": MODEL}, "op"),
        ("POST", f"/nodes/{NODE}/models?stream=perhaps", {"op": "load", "model": MODEL}, "stream"),
    ):
        answer = await alice.request(method, path, json=body)
        assert (answer.status_code, answer.json().get("path")) == (400, place), answer.text


async def test_only_administrators_of_the_cluster_may(bob: Alice) -> None:
    for method, path in (
        ("GET", "/models"),
        ("PUT", f"/models/{MODEL}/policy"),
        ("DELETE", f"/models/{MODEL}/policy"),
        ("PUT", f"/nodes/{NODE}/policy"),
        ("POST", f"/nodes/{NODE}/models"),
    ):
        assert (await bob.request(method, path, json={})).status_code == 403


async def test_a_drain_is_stored_and_shown(alice: Alice, bus: Bus) -> None:
    assert (await nodes_of(alice))[NODE]["draining"] is False
    for draining, state in ((True, "draining"), (False, "ready")):
        answer = await alice.put(f"/nodes/{NODE}/policy", json={"draining": draining})
        assert answer.json() == {"name": NODE, "policy": {"draining": draining}}
        stored, _ = await Bucket(bus, "models").get(node_record(NODE))
        assert stored is not None
        assert decode_node_policy(stored).draining is draining
        await beat(bus, NODE, MODEL, vram=24)

        async def shown(draining: bool = draining, state: str = state) -> bool:
            node = (await nodes_of(alice))[NODE]
            return (node["draining"], node["state"], node["vram"]) == (draining, state, 24)

        await eventually(shown)


async def test_models_are_listed_with_where_they_are(alice: Alice, bus: Bus) -> None:
    inside = LoadedModel(name=MODEL, digest="other", size=7, size_vram=6, context_length=4096)
    await beat(bus, "n2", MODEL, loaded=(inside,))
    await knows(alice, "n2")
    model = (await models_of(alice))[MODEL]
    assert [(node["name"], node["loaded"], node["size_vram"]) for node in model["nodes"]] == sorted(
        [("n2", True, 6), (NODE, False, None)]
    )
    assert model["same_everywhere"] is False, "the same name with other bytes"
    assert model["policy"]["num_ctx"] is None


# -- work on a node's models -----------------------------------------------------------------------------------------------------


async def test_progress_comes_line_by_line_and_only_when_it_changes(alice: Alice, bus: Bus) -> None:
    second = ModelAnswer(state=ModelWork.RUNNING, status="pulling aa", completed=3, total=4)
    async with node_that_says(bus, steps(RUNNING, RUNNING, second, DONE)) as asked:
        answer = await alice.post(f"/nodes/{NODE}/models", json={"op": "pull", "model": "new:1b"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(text) for text in answer.text.splitlines()]
    assert [(line["state"], line["completed"]) for line in lines] == [("running", 1), ("running", 3), ("done", 4)]
    assert all((line["node"], line["op"], line["model"]) == (NODE, "pull", "new:1b") for line in lines)
    assert len(asked) == 4
    assert len({order.op_id for order in asked}) == 1
    assert asked[0].op_id


async def test_two_requests_are_two_wishes(alice: Alice, bus: Bus) -> None:
    """So that what ended a moment ago is not taken for the new one."""
    async with node_that_says(bus, steps(DONE)) as asked:
        for _ in range(2):
            await alice.post(f"/nodes/{NODE}/models", json={"op": "pull", "model": "new:1b"})
    assert asked[0].op_id != asked[1].op_id


async def test_one_answer_instead_of_many(alice: Alice, bus: Bus) -> None:
    async with node_that_says(bus, steps(RUNNING, DONE)):
        done = await alice.post(f"/nodes/{NODE}/models?stream=false", json={"op": "pull", "model": "new:1b"})
    assert (done.status_code, done.json()["state"]) == (200, "done")
    async with node_that_says(bus, steps(RUNNING, FAILED)):
        failed = await alice.post(f"/nodes/{NODE}/models?stream=false", json={"op": "pull", "model": "new:1b"})
    assert (failed.status_code, failed.json()["code"]) == (502, "node_failed")
    assert "no space left on device" in failed.json()["detail"]


async def test_a_load_carries_the_policy(alice: Alice, bus: Bus) -> None:
    await alice.put(f"/models/{MODEL}/policy", json={"pin": [NODE], "num_ctx": 8192})

    async def listed() -> bool:
        return bool((await models_of(alice))[MODEL]["policy"]["pins"])

    await eventually(listed)
    async with node_that_says(bus, steps(DONE)) as asked:
        await alice.post(f"/nodes/{NODE}/models", json={"op": "load", "model": MODEL})
        refused = await alice.post(f"/nodes/{NODE}/models", json={"op": "load", "model": MODEL, "num_ctx": 4096})
    assert (asked[0].keep_alive, asked[0].num_ctx, len(asked)) == (-1, 8192, 1)
    assert refused.status_code == 400


async def test_a_model_that_the_node_does_not_have_is_a_404(alice: Alice, bus: Bus) -> None:
    async with node_that_says(bus, steps(DONE)) as asked:
        answer = await alice.post(f"/nodes/{NODE}/models", json={"op": "load", "model": "nothing:1b"})
    assert (answer.status_code, answer.json()["code"], asked) == (404, "model_not_found", [])
    assert f"arriero models pull nothing:1b --node {NODE}" in answer.json()["detail"]


async def test_a_worker_that_is_started_again_is_asked_anew(
    gateway: Gateway, alice: Alice, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a while in which nobody answers."""
    missed: list[str] = []
    request = gateway.bus.request

    async def watched(subject: str, *args: Any, **more: Any) -> bytes:
        try:
            return await request(subject, *args, **more)
        except NoResponders:
            missed.append(subject)
            raise

    monkeypatch.setattr(gateway.bus, "request", watched)
    async with node_that_says(bus, steps(RUNNING)) as first:
        asking = asyncio.create_task(alice.post(f"/nodes/{NODE}/models", json={"op": "pull", "model": "new:1b"}))
        await eventually(lambda: first)
    await eventually(lambda: missed)
    async with node_that_says(bus, steps(RUNNING, DONE), boot="boot-2") as second:
        await beat(bus, NODE, MODEL, boot="boot-2")
        answer = await asking
    assert json.loads(answer.text.splitlines()[-1])["state"] == "done"
    assert second[0].op_id == first[0].op_id


async def test_a_node_that_is_away_or_silent_is_a_503_that_says_what_to_do(
    alice: Alice, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_work, "GIVE_UP_S", 0.3)
    wish = {"op": "pull", "model": "new:1b"}
    silent = await alice.post(f"/nodes/{NODE}/models", json=wish)
    assert (silent.status_code, silent.json()["code"]) == (503, "unavailable")
    assert "look at its log" in silent.json()["detail"]

    def once_and_never_again() -> Callable[[ModelOrder], ModelAnswer | None]:
        answers = [RUNNING]
        return lambda order: answers.pop() if answers else None

    monkeypatch.setattr(node_work, "ANSWER_S", 0.1)
    async with node_that_says(bus, once_and_never_again()):
        cut = await alice.post(f"/nodes/{NODE}/models", json=wish)
    last = json.loads(cut.text.splitlines()[-1])
    assert (cut.status_code, last["state"], last["code"]) == (200, "failed", "unavailable")
    for module in (fleet_models, node_work):
        monkeypatch.setattr(module, "DEAD_S", 0.0)
    away = await alice.post(f"/nodes/{NODE}/models", json=wish)
    assert away.status_code == 503
    assert "start its worker again" in away.json()["detail"]


async def test_a_client_that_leaves_ends_the_asking_and_a_drain_says_so(
    gateway: Gateway, alice: Alice, bus: Bus
) -> None:
    async with node_that_says(bus, steps(RUNNING)) as asked:
        async with alice.stream("POST", f"/nodes/{NODE}/models", json={"op": "pull", "model": "new:1b"}) as stream:
            async for _ in stream.aiter_lines():
                break

        async def quiet() -> bool:
            before = len(asked)
            await asyncio.sleep(4 * node_work.ASK_EVERY_S)
            return len(asked) == before

        await eventually(quiet)
        lines: list[Any] = []
        async with alice.stream("POST", f"/nodes/{NODE}/models", json={"op": "pull", "model": "new:1b"}) as stream:
            async for text in stream.aiter_lines():
                lines.append(json.loads(text))
                if len(lines) == 1:
                    assert gateway.running.drain
                    draining = asyncio.create_task(gateway.running.drain())
        await draining
    assert (lines[-1]["state"], lines[-1]["code"]) == ("failed", "draining")
    assert "the work goes on" in lines[-1]["status"]
