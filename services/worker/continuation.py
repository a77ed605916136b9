"""How to ask this node for the rest of an answer: asks it how it renders the prompt, and follows `continuing`'s plan."""

from typing import NamedTuple

from libs.common.contracts.requests import Kind, Request
from services.worker.continuing import (
    Cannot,
    Carried,
    Joint,
    Plan,
    Render,
    Spent,
    first_step,
    plan_raw,
    plan_trailing,
    raw_request,
    trailing_request,
)
from services.worker.continuing import Raw as RawPlan
from services.worker.endings import Broke, Ending, Finished, Unfit
from services.worker.ollama import NodeAway, Ollama
from services.worker.translate import ollama_request

NATIVE_MARK = "{%"  # a Jinja template; Ollama's own Go templates and the renderers' placeholders have none (§1.4)


class Continuation(NamedTuple):
    kind: Kind  # of the request to the node, not of the job
    request: Request
    joint: Joint


async def continue_from(ollama: Ollama, kind: Kind, request: Request, carried: Carried) -> Continuation | Ending:
    """The request that goes on from there, or how the run has ended without one."""
    try:
        plan = await _plan(ollama, kind, request, carried)
    except NodeAway as error:
        return Broke(f"the node did not say how it renders the prompt: {error}")
    match plan:
        case Cannot(reason):
            return Unfit(reason)
        case Spent():
            final = {"model": request.model, "done": True, "done_reason": "length", "eval_count": carried.tokens}
            return Finished(final)
        case RawPlan(prompt):
            return Continuation(Kind.GENERATE, raw_request(request, carried, prompt), Joint(plan, carried))
        case _:
            return Continuation(kind, trailing_request(request, carried), Joint(plan, carried))


async def _plan(ollama: Ollama, kind: Kind, request: Request, carried: Carried) -> Plan:
    step = first_step(kind, request, carried)
    if isinstance(step, Render) and step.trailing:
        native = NATIVE_MARK in (await ollama.shown(request.model)).template
        rendered = await ollama.rendered(*ollama_request(kind, trailing_request(request, carried)))
        step = plan_trailing(request, carried, rendered, native=native)
    if isinstance(step, Render):
        return plan_raw(request, carried, await ollama.rendered(*ollama_request(kind, request)))
    return step
