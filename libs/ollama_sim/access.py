"""From a model name in a request to a runner in hand, with all the ways that can be refused."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from libs.ollama_sim.models import ChatPath, Model
from libs.ollama_sim.names import parse_name
from libs.ollama_sim.node import Node
from libs.ollama_sim.options import BadOption, RunnerOptions, check_options, runner_options
from libs.ollama_sim.refusals import Refusal
from libs.ollama_sim.runner import Runner
from libs.ollama_sim.scheduler import LoadFailed, ServerBusy

_BUSY = "server busy, please try again.  maximum pending requests exceeded"


def find_for_inference(node: Node, text: str, *, is_chat: bool) -> Model:
    """The model of a chat or generate request."""
    if is_chat and not text:
        raise Refusal(400, "model is required")
    name = parse_name(text)
    if name is None and is_chat:
        raise Refusal(400, "invalid model name")
    if name is not None and name.is_cloud:
        raise Refusal(403, "ollama cloud is disabled: remote model is unavailable")
    model = node.find(name) if name is not None else None
    if model is None:
        raise Refusal(404, f"model '{text}' not found")
    return model


def find_for_embedding(node: Node, text: str) -> Model:
    name = parse_name(text)
    model = node.find(name) if name is not None else None
    if model is None:
        raise Refusal(404, f'model "{text}" not found, try pulling it first')
    return model


def capabilities(model: Model, *, is_shown: bool = False) -> list[str]:
    """In the order of the real server; the native path's extras appear only in `/api/show`."""
    if model.can_embed:
        return ["embedding"]
    extras = [word for word, has in (("tools", model.can_call_tools), ("thinking", model.can_think)) if has]
    vision = ["vision"] if model.can_see else []
    if model.path is not ChatPath.NATIVE:
        return ["completion", *vision, *extras]
    return [*extras, "completion", *vision] if is_shown else ["completion", *vision]


@contextlib.asynccontextmanager
async def runner_for(
    node: Node, model: Model, options: dict[str, Any], does_shift: bool | None, keep_alive_s: float | None, route: str
) -> AsyncIterator[Runner]:
    """A runner for as long as the block runs."""
    runner = await _acquire(node, model, _checked(options, does_shift), keep_alive_s, route)
    try:
        yield runner
    finally:
        node.scheduler.release(runner)


def _checked(options: dict[str, Any], does_shift: bool | None) -> RunnerOptions:
    try:
        check_options(options)
    except BadOption as exc:
        raise Refusal(500, str(exc)) from exc
    return runner_options(options, does_shift)


async def _acquire(node: Node, model: Model, options: RunnerOptions, keep_alive_s: float | None, route: str) -> Runner:
    try:
        return await node.scheduler.acquire(model, options, keep_alive_s, route)
    except ServerBusy as exc:
        raise Refusal(503, _BUSY) from exc
    except LoadFailed as exc:
        raise Refusal(500, str(exc)) from exc
