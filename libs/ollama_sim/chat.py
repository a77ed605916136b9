"""POST /api/chat."""

import time

import msgspec

from libs.ollama_sim.access import find_for_inference, runner_for
from libs.ollama_sim.answers import Style
from libs.ollama_sim.directives import Directives, ToolOrder, read_directives
from libs.ollama_sim.draws import Draws, key_of
from libs.ollama_sim.exchange import Exchange
from libs.ollama_sim.formats import json_writer
from libs.ollama_sim.inference import Task, give, make_plan
from libs.ollama_sim.models import ChatPath, Model
from libs.ollama_sim.node import Node
from libs.ollama_sim.presenters import ChatPresenter, Look
from libs.ollama_sim.prompts import Prompt, count_tokens, render_chat
from libs.ollama_sim.refusals import Refusal, engine_refusal
from libs.ollama_sim.requests import ChatRequest, Message, read_chat
from libs.ollama_sim.schema import BadSchema, instance
from libs.ollama_sim.wire import AnswerMessage, ChatLine, DebugInfo, go_time


async def chat(node: Node, exchange: Exchange, body: bytes) -> None:
    started_ns = node.pace.now_ns()
    request = read_chat(body)
    node.remember(exchange.path, request.model, request.keys, request.options, request.is_stream)
    model = find_for_inference(node, request.model, is_chat=True)
    if not request.messages and request.keep_alive_s == 0:
        node.scheduler.unload(model)
        await exchange.json(_emptied(request, "unload"))
        return
    _check_capabilities(model, request)
    async with runner_for(
        node, model, request.options, request.does_shift, request.keep_alive_s, exchange.path
    ) as runner:
        loaded_ns = node.pace.now_ns()
        if not request.messages:
            await exchange.json(_emptied(request, "load"))
            return
        _check_last_messages(model, request.messages)
        prompt = _render(model, request, runner.num_ctx)
        if request.is_render_only:
            message, debug = AnswerMessage("", ""), DebugInfo(prompt.rendered)
            await exchange.json(ChatLine(request.model, go_time(time.time_ns()), message, False, debug_info=debug))
            return
        _check_images(model, request.messages)
        is_native = model.path is ChatPath.NATIVE
        top_logprobs = request.top_logprobs if request.wants_logprobs else None
        look = Look(request.model, model.path, repeated=prompt.repeated, top_logprobs=top_logprobs)
        task = Task(
            request=request,
            model=model,
            plan=make_plan(node, runner, request, prompt, _style(model, request, prompt), is_native_chat=is_native),
            presenter=ChatPresenter(look),
            is_native_chat=is_native,
            started_ns=started_ns,
            loaded_ns=loaded_ns,
        )
        await give(node, exchange, runner, task)


def _emptied(request: ChatRequest, reason: str) -> ChatLine:
    return ChatLine(request.model, go_time(time.time_ns()), AnswerMessage("assistant", ""), True, reason)


def _check_capabilities(model: Model, request: ChatRequest) -> None:
    if model.can_embed:
        raise Refusal(400, f'"{request.model}" does not support chat')
    if request.think and not model.can_think:
        raise Refusal(400, f'"{request.model}" does not support thinking')
    if request.tools and not model.can_call_tools:
        raise Refusal(400, f"{model.name.full} does not support tools")


def _check_last_messages(model: Model, messages: tuple[Message, ...]) -> None:
    if model.path is not ChatPath.NATIVE or messages[-1].role != "assistant":
        return
    if len(messages) > 1 and messages[-2].role == "assistant":
        text = "Cannot have 2 or more assistant messages at the end of the list."
        raise engine_refusal(400, text, "invalid_request_error", is_late=False)
    if messages[-1].tool_calls:
        text = "Cannot continue an assistant message that has tool calls."
        raise engine_refusal(400, text, "invalid_request_error", is_late=False)
    if "<tool_call>" in messages[-1].content and "</tool_call>" not in messages[-1].content:
        text = "The model produced output that does not match the expected peg-native format"
        raise Refusal(500, f"llama-server chat error: map[code:500 message:{text} type:server_error]", is_late=True)


def _check_images(model: Model, messages: tuple[Message, ...]) -> None:
    if model.can_see or not any(message.has_images for message in messages):
        return
    if model.path is ChatPath.NATIVE:
        text = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
        raise engine_refusal(500, text, "server_error")
    text = "Multimodal data provided, but model does not support multimodal requests."
    raise engine_refusal(400, text, "invalid_request_error")


def _render(model: Model, request: ChatRequest, num_ctx: int) -> Prompt:
    """Drop the oldest messages until the prompt fits; system messages and the last message always stay."""
    tools_json = "\n".join(msgspec.json.encode(tool).decode() for tool in request.tools)
    does_think = model.can_think if request.think is None else bool(request.think)
    messages = request.messages
    if model.system and messages[0].role != "system":
        messages = (Message("system", model.system), *messages)
    while True:
        prompt = render_chat(model, messages, tools_json=tools_json, does_think=does_think)
        if not request.does_truncate or count_tokens(prompt.text) <= num_ctx:
            return prompt
        oldest = next((i for i, each in enumerate(messages[:-1]) if each.role != "system"), None)
        if oldest is None:
            return prompt
        messages = messages[:oldest] + messages[oldest + 1 :]


def _style(model: Model, request: ChatRequest, prompt: Prompt) -> Style:
    last = request.messages[-1]
    if last.role == "assistant" and len(request.messages) > 1:
        last = request.messages[-2]
    directives = read_directives(last.content) if last.role == "user" else Directives()
    return Style(
        beginning=prompt.beginning,
        directives=directives,
        calls=_calls(model, request, directives, is_asked=last.role == "user"),
        json_text=json_writer(request.format, model.path, is_chat=True),
    )


def _calls(model: Model, request: ChatRequest, directives: Directives, *, is_asked: bool) -> tuple[ToolOrder, ...]:
    if not request.tools:
        return ()
    if directives.tools or not (model.is_eager_caller and is_asked):
        return directives.tools
    function = request.tools[0].get("function")
    if not isinstance(function, dict) or not function.get("name"):
        return ()
    try:
        arguments = instance(function.get("parameters") or {"type": "object", "properties": {}}, Draws(key_of(0)))
    except BadSchema:
        arguments = {}
    return (ToolOrder(str(function["name"]), msgspec.json.encode(arguments).decode()),)
