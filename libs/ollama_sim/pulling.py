"""POST /api/pull: a download at the node's rate, with the progress lines of a real one."""

import itertools
import time
from collections.abc import Iterator

import msgspec

from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.exchange import JSON, Exchange
from libs.ollama_sim.models import Model
from libs.ollama_sim.names import DEFAULT_HOST, ModelName, parse_name
from libs.ollama_sim.node import Node
from libs.ollama_sim.refusals import Refusal
from libs.ollama_sim.requests import read_object
from libs.ollama_sim.wire import ProgressLine, encode

_UNKNOWN_SIZE = 2 * 10**9
_LEAST_STEPS = 10
_STEP_S = 0.06  # real, between two lines of a long download


async def pull(node: Node, exchange: Exchange, body: bytes) -> None:
    """What fails after the first line is a line itself; a client that leaves stops its download."""
    fields = read_object(body)
    name = parse_name(str(fields.get("model") or fields.get("name") or ""))
    if name is None:
        raise Refusal(400, "invalid model name")
    is_stream = fields.get("stream") is not False
    if is_stream:
        await exchange.line(ProgressLine("pulling manifest"))
    present = node.find(name)
    model = present or offered(node.config, name)
    if model is None:
        await _fail(exchange, _missing(name), is_stream=is_stream)
        return
    model = msgspec.structs.replace(model, modified_ns=time.time_ns())
    await _download(node, exchange, model, is_stream=is_stream, is_present=present is not None)
    node.install(model)
    if not is_stream:
        await exchange.json({"status": "success"})
        return
    for status in ("verifying sha256 digest", "writing manifest", "success"):
        await exchange.line(ProgressLine(status))
    await exchange.end()


def offered(config: NodeConfig, name: ModelName) -> Model | None:
    """What the registry has by this name; without a list of its models, any name is a small model without extras."""
    if name.host != DEFAULT_HOST:
        return None
    if config.registry:
        return next((model for model in config.registry if model.name.key == name.key), None)
    return Model(name=name, size_bytes=_UNKNOWN_SIZE)


def progress(total: int, steps: int) -> Iterator[int]:
    """Bytes that are there after each step, the last time all of them."""
    return (total * step // steps for step in range(1, steps + 1))


async def _download(node: Node, exchange: Exchange, model: Model, *, is_stream: bool, is_present: bool) -> None:
    pace, total = node.pace, model.size_bytes
    seconds = 0.0 if is_present else total / ((node.config.pull_gbps or node.config.disk_gbps) * 10**9)
    steps = 1 if is_present else max(_LEAST_STEPS, int(pace.real(seconds) / _STEP_S))
    status, digest = f"pulling {model.blob_id[:12]}", f"sha256:{model.blob_id}"
    started = pace.now()
    for step, completed in zip(itertools.count(1), progress(total, steps), strict=False):
        if step == 1 and is_stream and not is_present:
            await exchange.line(ProgressLine(status, digest, total))
        if pace.is_instant:
            await pace.sleep(0)
        else:
            await pace.sleep_until(started + seconds * step / steps)
        if is_stream:
            await exchange.line(ProgressLine(status, digest, total, completed))


async def _fail(exchange: Exchange, text: str, *, is_stream: bool) -> None:
    if is_stream:
        await exchange.line({"error": text})
        await exchange.end()
    else:
        await exchange.whole(encode({"error": text}), JSON, 500)


def _missing(name: ModelName) -> str:
    if name.host == DEFAULT_HOST:
        return "pull model manifest: file does not exist"
    url = f"https://{name.host}/v2/{name.namespace}/{name.model}/manifests/{name.tag}"
    return f'pull model manifest: Get "{url}": dial tcp {name.host}: connect: connection refused'
