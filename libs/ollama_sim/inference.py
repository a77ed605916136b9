"""What chat and generate share: from a rendered prompt to the last byte of the answer."""

import contextlib
import os
from typing import Any

import msgspec

from libs.ollama_sim.answers import Continuation, Identity, Style, continuation
from libs.ollama_sim.exchange import Exchange
from libs.ollama_sim.faults import FaultKind, Phase
from libs.ollama_sim.generation import Cut, Generation, Order
from libs.ollama_sim.models import Model
from libs.ollama_sim.node import Node
from libs.ollama_sim.options import sampling, token_limit, usable_context
from libs.ollama_sim.prefixes import BYTES_PER_TOKEN
from libs.ollama_sim.presenters import Presenter
from libs.ollama_sim.prompts import Prompt, count_tokens
from libs.ollama_sim.refusals import Refusal, context_exceeded
from libs.ollama_sim.requests import InferenceRequest
from libs.ollama_sim.runner import EngineDied, Runner
from libs.ollama_sim.wire import Metrics, encode

_KILLED = 137


class Plan(msgspec.Struct, frozen=True):
    """What is left to generate and how long the prompt is."""

    rest: Continuation
    prompt_tokens: int
    prompt: bytes  # as the engine sees it


class Task(msgspec.Struct, frozen=True):
    """One answer to give."""

    request: InferenceRequest
    model: Model
    plan: Plan
    presenter: Presenter
    is_native_chat: bool
    started_ns: int  # simulated clock when the request was read
    loaded_ns: int  # the same when the runner was in hand


def make_plan(
    node: Node, runner: Runner, request: InferenceRequest, prompt: Prompt, style: Style, *, is_native_chat: bool
) -> Plan:
    """Find where in its answer the prompt stands; refuse or shorten what does not fit into the context."""
    identity = Identity(node.config.seed, runner.model.blob_id, sampling(request.options).seed)
    start = prompt.start
    if style.json_text is not None and not is_native_chat:
        start = len(prompt.text)  # off the native path the grammar starts again
    rest = continuation(identity, prompt.text, start, style, is_marked=prompt.is_marked)
    written = prompt.text[prompt.start :] if prompt.is_marked else ""
    fixed = prompt.rendered[: len(prompt.rendered) - len(written)]
    tokens = count_tokens(fixed) + (rest.tokens_done or count_tokens(written))
    text = prompt.rendered.encode("utf-8", "surrogatepass")
    usable = usable_context(runner.num_ctx)
    if tokens > usable and (is_native_chat or not request.does_truncate):
        raise context_exceeded(tokens, usable)
    if tokens > runner.num_ctx and not is_native_chat:
        keep = sampling(request.options).num_keep
        tokens = keep + (runner.num_ctx - keep) // 2  # the middle of the prompt is gone, silently
        head = BYTES_PER_TOKEN * keep
        text = text[:head] + text[max(head, len(text) - BYTES_PER_TOKEN * (tokens - keep)) :]
    return Plan(rest, tokens, text)


async def give(node: Node, exchange: Exchange, runner: Runner, task: Task) -> None:
    """Generate and send; all endings of an answer, proper and improper, are here."""
    request = task.request
    wanted = sampling(request.options)
    limit = token_limit(wanted.num_predict, runner.num_ctx, is_native_chat=task.is_native_chat)
    if request.does_shift is False:
        room = max(1, usable_context(runner.num_ctx) - task.plan.prompt_tokens)
        limit = room if limit is None else min(limit, room)
    fault = node.faults.draw(Phase.STREAM, exchange.path, task.model.name.short)
    plan = task.plan
    order = Order(plan.rest.pieces, plan.prompt_tokens, limit, wanted.stop, fault, plan.prompt)
    generation = Generation(runner, order, node.pace, node.counters)
    try:
        await _send_pieces(exchange, generation, task)
        ended_ns = max(node.pace.now_ns(), generation.ended_ns)
        await _send_end(exchange, generation, task, ended_ns)
    except EngineDied as exc:
        node.counters.failed += 1
        await _send_death(exchange, str(exc), is_stream=request.is_stream)
    except Cut as cut:
        node.counters.failed += 1
        await _cut(exchange, cut.kind, task)
    else:
        node.counters.served += 1


async def _send_pieces(exchange: Exchange, generation: Generation, task: Task) -> None:
    async with contextlib.aclosing(generation.pieces()) as pieces:
        async for piece in pieces:
            line = task.presenter.show(piece)
            if line is not None and task.request.is_stream:
                await exchange.line(line)


async def _send_end(exchange: Exchange, generation: Generation, task: Task, ended_ns: int) -> None:
    metrics = Metrics(
        total_duration=ended_ns - task.started_ns,
        load_duration=task.loaded_ns - task.started_ns,
        prompt_eval_count=task.plan.prompt_tokens,
        prompt_eval_duration=generation.prompt_eval_ns,
        eval_count=generation.eval_count,
        eval_duration=generation.eval_ns,
    )
    if not task.request.is_stream:
        await exchange.json(task.presenter.whole(generation.done_reason, metrics))
        return
    for line in task.presenter.final(generation.done_reason, metrics):
        await exchange.line(line)
    await exchange.end()


async def _send_death(exchange: Exchange, text: str, *, is_stream: bool) -> None:
    if exchange.has_begun:
        await exchange.line({"error": text})
        await exchange.end()
        return
    raise Refusal(500, text, is_late=is_stream)


async def _cut(exchange: Exchange, kind: FaultKind, task: Task) -> None:
    match kind:
        case FaultKind.EOF if task.request.is_stream:
            await exchange.end()
        case FaultKind.EOF:
            await exchange.json(task.presenter.whole("", None))
        case FaultKind.EXIT:
            os._exit(_KILLED)
        case FaultKind.RESET:
            await exchange.connection.close(is_reset=True)
        case FaultKind.HALF_LINE:
            await _send_half(exchange, task.presenter.whole("", None))
            await exchange.connection.close()
        case _:
            await exchange.connection.close()


async def _send_half(exchange: Exchange, line: Any) -> None:
    if not exchange.has_begun:
        await exchange.begin()
    body = encode(line)
    await exchange.chunk(body[: len(body) // 2])
