"""POST /api/generate, with and without `raw`."""

import time

from libs.ollama_sim.access import find_for_inference, runner_for
from libs.ollama_sim.answers import Style
from libs.ollama_sim.directives import read_directives
from libs.ollama_sim.exchange import Exchange
from libs.ollama_sim.formats import json_writer
from libs.ollama_sim.inference import Task, give, make_plan
from libs.ollama_sim.models import ChatPath, Model
from libs.ollama_sim.node import Node
from libs.ollama_sim.presenters import GeneratePresenter, Look, prompt_token_ids
from libs.ollama_sim.prompts import Prompt, last_user_text, read_raw, render_chat
from libs.ollama_sim.refusals import Refusal, engine_refusal
from libs.ollama_sim.requests import GenerateRequest, Message, read_generate
from libs.ollama_sim.wire import DebugInfo, GenerateLine, go_time


async def generate(node: Node, exchange: Exchange, body: bytes) -> None:
    started_ns = node.pace.now_ns()
    request = read_generate(body)
    node.remember(exchange.path, request.model, request.keys, request.options, request.is_stream)
    model = find_for_inference(node, request.model, is_chat=False)
    if not request.prompt and request.keep_alive_s == 0:
        node.scheduler.unload(model)
        await exchange.json(_emptied(request, "unload"))
        return
    _check_capabilities(model, request)
    async with runner_for(
        node, model, request.options, request.does_shift, request.keep_alive_s, exchange.path
    ) as runner:
        loaded_ns = node.pace.now_ns()
        if not request.prompt:
            await exchange.json(_emptied(request, "load"))
            return
        prompt = _prompt(model, request)
        if request.is_render_only:
            debug = DebugInfo(prompt.rendered)
            await exchange.json(GenerateLine(request.model, go_time(time.time_ns()), "", done=False, debug_info=debug))
            return
        if request.has_images and not model.can_see:
            text = "Multimodal data provided, but model does not support multimodal requests."
            raise engine_refusal(400, text, "invalid_request_error")
        style = _style(model, request, prompt)
        look = Look(
            request.model,
            model.path,
            does_parse=not request.is_raw and model.path is not ChatPath.NATIVE,
            top_logprobs=request.top_logprobs if request.wants_logprobs else None,
        )
        plan = make_plan(node, runner, request, prompt, style, is_native_chat=False)
        context = None if request.is_raw else prompt_token_ids(prompt.text, plan.prompt_tokens)
        task = Task(
            request=request,
            model=model,
            plan=plan,
            presenter=GeneratePresenter(look, context),
            is_native_chat=False,
            started_ns=started_ns,
            loaded_ns=loaded_ns,
        )
        await give(node, exchange, runner, task)


def _emptied(request: GenerateRequest, reason: str) -> GenerateLine:
    return GenerateLine(request.model, go_time(time.time_ns()), "", done=True, done_reason=reason)


def _check_capabilities(model: Model, request: GenerateRequest) -> None:
    if model.can_embed:
        raise Refusal(400, f'"{request.model}" does not support generate')
    if request.suffix:
        raise Refusal(400, f"{model.name.full} does not support insert")
    if request.think and not model.can_think:
        raise Refusal(400, f'"{request.model}" does not support thinking')


def _prompt(model: Model, request: GenerateRequest) -> Prompt:
    if request.is_raw:
        return read_raw(model, request.prompt)
    said = request.system or model.system
    system = (Message("system", said),) if said else ()
    does_think = model.can_think if request.think is None else bool(request.think)
    return render_chat(model, (*system, Message("user", request.prompt)), tools_json="", does_think=does_think)


def _style(model: Model, request: GenerateRequest, prompt: Prompt) -> Style:
    if request.is_raw:
        asked = prompt.text[: prompt.start] if prompt.is_marked else prompt.text
        directives = read_directives(last_user_text(model, asked))
        calls = directives.tools if "Functions you can call:" in asked else ()
    else:
        directives, calls = read_directives(request.prompt), ()
    return Style(
        beginning=prompt.beginning,
        directives=directives,
        calls=calls,
        json_text=json_writer(request.format, model.path, is_chat=False),
    )
