"""The same requests that were sent to a real Ollama, sent again: the answers must have the same form.

Runs against the simulator, and against a real server too when ARRIERO_TEST_OLLAMA holds its URL; there, recordings
whose model it lacks, and those that need a certain state of the node, are skipped.
"""

import asyncio
import json
import os
import re
import urllib.parse
import urllib.request
from typing import Any

import pytest

from libs.ollama_sim.faults import Fault, FaultKind
from libs.ollama_sim.models import parse_models
from tests.ollama_sim.comparison import assert_same_form
from tests.ollama_sim.conftest import Start, Talker
from tests.ollama_sim.recordings import Recording, load, names
from tests.ollama_sim.sockets import connected, exchange, exchange_raw, request

RECORDED_MODELS = parse_models(  # newest first, as the recording of /api/tags has them
    "arr-tool=36MB:thinking:caller:ctx=8192:family=qwen3,arr-thinkbabble=84MB:thinking:ctx=8192:family=qwen3,"
    "arr-spm-open=84MB:template-open:ctx=4096,arr-slow2=330MB:tools:family=qwen2,arr-spm=84MB:template-closed:ctx=4096,"
    "arr-spm-legacy=84MB:template-open:blob=arr-spm:ctx=4096,arr-slow=330MB:tools:family=qwen2,"
    "arr-script=36MB:thinking:ctx=8192:family=qwen3,arr-qbabble=84MB:tools:family=qwen2,"
    "arr-ender=84MB:tools:ctx=8192:family=qwen2,arr-parser=36MB:parser:tools:ctx=8192:family=qwen3,"
    "arr-parser-tool=36MB:parser:thinking:caller:ctx=8192:family=qwen3,arr-babble2=36MB:tools:ctx=4096:family=qwen2,"
    "arr-embed=9MB:embed:dim=128:ctx=512,arr-babble=84MB:tools:family=qwen2"
)


def _load(model: str, **fields: Any) -> bytes:
    return request("POST", "/api/generate", {"model": model, **fields})


# What has to happen on the node before the recorded request.
BEFORE: dict[str, tuple[bytes, ...]] = {
    "ps-one": (_load("arr-slow"),),
    "ps-while-eviction-waits": (_load("arr-slow"),),
    "ps-numctx": (_load("arr-slow", options={"num_ctx": 8192}),),
    "ps-many": (_load("arr-babble"), _load("arr-spm"), _load("arr-babble2", options={"num_ctx": 64})),
    "ps-forever": (_load("arr-spm"), _load("arr-script"), _load("arr-babble", keep_alive=-1)),
    "ps-after-child-killed": (request("POST", "/api/chat", load("kill-child-chat-stream").body),),
    "chat-after-child-killed": (request("POST", "/api/chat", load("kill-child-chat-stream").body),),
}
_CRASH = Fault(FaultKind.CRASH, after_tokens=20)
FAULTS = {
    "kill-child-chat-stream": _CRASH,
    "kill-child-chat-nonstream": _CRASH,
    "kill-child-generate-raw": _CRASH,
    "kill-child-chat-prefill": Fault(FaultKind.CRASH),
    "ps-after-child-killed": _CRASH,
    "chat-after-child-killed": _CRASH,
    "sigterm-ollama-chat-stream": Fault(FaultKind.DEATH, after_tokens=20),
    "sigkill-ollama-chat-stream": Fault(FaultKind.DEATH, after_tokens=20),
}
# The simulated answer would end where the recorded one went on; so it is cut earlier.
SHORTER = {"chat-format-json": 3}
ELSEWHERE = {
    "chat-prefill-native-complete": "needs a whole answer of the server's own; see test_continuation",
    "chat-client-cancel": "the client leaves; see test_scheduler",
    "chat-half-close": "the client leaves; see test_scheduler",
    "generate-num-predict-0": "the client leaves; see test_wire",
    "chat-keepalive-conn": "the connection stays open; see below",
    "err-503-queue-full": "see below",
    "err-503-embed": "see below",
    "err-503-generate-load": "see below",
}
COMPARED = [name for name in names() if name not in ELSEWHERE]


@pytest.mark.parametrize("name", COMPARED)
async def test_the_simulator_answers_in_the_recorded_form(start: Start, name: str) -> None:
    recording = load(name)
    fault = FAULTS.get(name)
    node: Talker = await start(
        models=RECORDED_MODELS, version="0.33.0-rc2", vram_bytes=0, faults=(fault,) if fault else ()
    )
    for before in BEFORE.get(name, ()):
        await exchange_raw(node.sim.host, node.sim.port, before)

    actual = await exchange(node.sim.host, node.sim.port, _with_length(recording))

    assert_same_form(actual, recording.reply)


async def test_a_kept_connection_serves_another_request(start: Start) -> None:
    recording = load("chat-keepalive-conn")
    node: Talker = await start(models=RECORDED_MODELS)
    async with node.open() as wire:
        await wire.send(_with_length(recording))
        first = await wire.until(b"\r\n0\r\n\r\n")
        await wire.send(request("GET", "/api/version"))
        second = await wire.rest()

    assert b"connection: close" not in first
    assert b'"done":true' in first
    assert second.endswith(b'{"version":"0.33.0"}')


@pytest.mark.parametrize("name", ["err-503-queue-full", "err-503-embed", "err-503-generate-load"])
async def test_a_full_queue_answers_in_the_recorded_form(start: Start, name: str) -> None:
    recording = load(name)
    stuck = Fault(FaultKind.STUCK_LOAD)
    node: Talker = await start(models=RECORDED_MODELS, max_queue=1, faults=(stuck,))
    async with asyncio.timeout(10), asyncio.TaskGroup() as others:
        waiting = [others.create_task(_send_quietly(node, _load("arr-babble")))]
        await node.sim.until(lambda state: state.placing)
        waiting.append(others.create_task(_send_quietly(node, _load("arr-babble2"))))
        await node.sim.until(lambda state: state.queued == 1)

        actual = await exchange(node.sim.host, node.sim.port, recording.request)

        for task in waiting:
            task.cancel()
    assert_same_form(actual, recording.reply)


def test_every_recording_is_compared_or_has_a_reason_not_to_be() -> None:
    assert set(BEFORE) | set(FAULTS) | set(ELSEWHERE) | set(SHORTER) <= set(names())


REAL = os.environ.get("ARRIERO_TEST_OLLAMA", "")
STATELESS = [name for name in COMPARED if name not in BEFORE and name not in FAULTS and not name.startswith("ps-")]


@pytest.mark.parametrize("name", STATELESS if REAL else [])
async def test_a_real_server_answers_in_the_recorded_form(name: str) -> None:
    recording = load(name)
    model = (recording.body or {}).get("model", "") if isinstance(recording.body, dict) else ""
    if model.startswith("arr-") and model not in await asyncio.to_thread(_installed):
        pytest.skip(f"{REAL} has no {model}")
    url = urllib.parse.urlsplit(REAL)

    actual = await exchange(url.hostname or "127.0.0.1", url.port or 11434, recording.request)

    assert_same_form(actual, recording.reply)


def _installed() -> set[str]:
    with urllib.request.urlopen(f"{REAL}/api/tags", timeout=5) as answer:
        return {each["name"].removesuffix(":latest") for each in json.load(answer)["models"]}


async def _send_quietly(node: Talker, raw: bytes) -> None:
    async with connected(node.sim.host, node.sim.port) as wire:
        await wire.send(raw)
        await wire.rest()


def _with_length(recording: Recording) -> bytes:
    """The recorded request with an order for an answer that is long enough where the recorded one was cut."""
    body = recording.body
    found = re.search(rb'"done_reason":"(length|stop)"', recording.response)
    if not isinstance(body, dict) or (found is None and recording.name not in FAULTS):
        return recording.request
    has_ended = found is not None and found[1] == b"stop"
    order = "[[think=5]][[tokens=9]]" if has_ended else "[[think=5000]][[tokens=5000]]"
    if recording.name in SHORTER:
        body["options"]["num_predict"] = SHORTER[recording.name]
    elif "prompt" in body:
        body["prompt"] = order + body["prompt"]
    elif "messages" in body:
        last_user = next(message for message in reversed(body["messages"]) if message["role"] != "assistant")
        last_user["content"] += order
    payload = json.dumps(body).encode()
    head = recording.request.partition(b"\r\n\r\n")[0]
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(payload), b"", payload])
