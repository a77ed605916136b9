"""POST /api/embed and its old form /api/embeddings."""

import array
import functools
import hashlib
import math
import re
import struct

import msgspec

from libs.ollama_sim.access import find_for_embedding, runner_for
from libs.ollama_sim.exchange import Exchange
from libs.ollama_sim.models import Model
from libs.ollama_sim.node import Node
from libs.ollama_sim.prompts import count_tokens
from libs.ollama_sim.refusals import Refusal
from libs.ollama_sim.requests import EmbedRequest, read_embed, read_object
from libs.ollama_sim.runner import Runner
from libs.ollama_sim.wire import EmbedAnswer

_WORD = re.compile(r"\w+")
_NOT_SUPPORTED = "This server does not support embeddings. Start it with `--embeddings`"


async def embed(node: Node, exchange: Exchange, body: bytes) -> None:
    started_ns = node.pace.now_ns()
    request = read_embed(body)
    node.remember(exchange.path, request.model, request.keys, request.options, is_stream=False)
    model = find_for_embedding(node, request.model)
    async with runner_for(node, model, request.options, None, request.keep_alive_s, exchange.path) as runner:
        loaded_ns = node.pace.now_ns()
        if not request.inputs:
            await exchange.json(EmbedAnswer(request.model, []))
            return
        vectors, tokens = await _embed_all(node, runner, request)
        now_ns = node.pace.now_ns()
        short = [[_shortest(value) for value in vector] for vector in vectors]
        answer = EmbedAnswer(request.model, short, now_ns - started_ns, loaded_ns - started_ns, tokens)
        await exchange.json(answer)
        node.counters.served += 1


async def embeddings(node: Node, exchange: Exchange, body: bytes) -> None:
    fields = read_object(body)
    request = read_embed(msgspec.json.encode({**fields, "input": fields.get("prompt") or ""}))
    node.remember(exchange.path, request.model, tuple(fields), request.options, is_stream=False)
    model = find_for_embedding(node, request.model)
    async with runner_for(node, model, request.options, None, request.keep_alive_s, exchange.path) as runner:
        vectors, _ = await _embed_all(node, runner, request)
        await exchange.json({"embedding": vectors[0] if vectors else []})
        node.counters.served += 1


async def _embed_all(node: Node, runner: Runner, request: EmbedRequest) -> tuple[list[list[float]], int]:
    """The inputs go through the one slot one after the other."""
    model = runner.model
    if request.inputs and not model.can_embed:
        raise Refusal(501, _NOT_SUPPORTED)
    vectors, tokens = [], 0
    for text in request.inputs:
        count = count_tokens(text) + 2  # with the marks of beginning and end
        if count > model.context_length:
            if not request.does_truncate:
                raise Refusal(400, "the input length exceeds the context length")
            count = model.context_length
        slot = await runner.take_slot()
        try:
            await node.pace.sleep(count / runner.rates.prefill_tps)
        finally:
            runner.give_back(slot)
        vectors.append(vector_of(model, text, request.dimensions))
        tokens += count
    return vectors, tokens


def vector_of(model: Model, text: str, dimensions: int = 0) -> list[float]:
    """A unit vector; texts that share words point in similar directions."""
    words = _WORD.findall(text.lower()) or [text]
    total = [0] * model.embedding_length
    for word in words:
        total = [have + more for have, more in zip(total, _word_vector(model.blob_id, word, len(total)), strict=True)]
    kept = total[:dimensions] if 0 < dimensions < len(total) else total
    norm = math.sqrt(sum(value * value for value in kept)) or 1.0
    return [_as_float32(value / norm) for value in kept]


@functools.lru_cache(maxsize=2048)
def _word_vector(blob_id: str, word: str, length: int) -> tuple[int, ...]:
    stream = hashlib.shake_128(f"{blob_id}\0{word}".encode("utf-8", "surrogatepass"))
    return tuple(array.array("h", stream.digest(2 * length)))


def _as_float32(value: float) -> float:
    (exact,) = struct.unpack("f", struct.pack("f", value))
    return float(exact)


def _shortest(value: float) -> float:
    """The shortest decimal that stands for the 32-bit value; the newer route sends these, the old one all digits."""
    texts = (f"{value:.{digits}g}" for digits in (7, 8, 9))
    return next((float(text) for text in texts if _as_float32(float(text)) == value), value)
