"""The simulator's own routes, for tests: what the node is doing, and what shall go wrong next."""

import msgspec

from libs.ollama_sim.exchange import Exchange
from libs.ollama_sim.faults import Fault
from libs.ollama_sim.names import parse_name
from libs.ollama_sim.node import Node, SeenRequest
from libs.ollama_sim.requests import BadRequest
from libs.ollama_sim.runner import Runner


class SlotState(msgspec.Struct, frozen=True):
    is_busy: bool
    tokens: int  # of the answer it is at, or was at last


class RunnerSummary(msgspec.Struct, frozen=True):
    model: str
    users: int
    waiting: int  # for a slot
    is_dead: bool
    is_unloading: bool
    num_ctx: int
    size: int
    size_vram: int
    slots: list[SlotState]


class FaultState(msgspec.Struct, frozen=True):
    kind: str
    seen: int
    fired: int


class NodeState(msgspec.Struct, frozen=True):
    """Answer of `GET /sim/state`."""

    in_flight: int
    requests: dict[str, int]  # by path
    served: int
    cancelled: int
    failed: int
    tokens: int
    prompt_tokens_read: int
    prompt_tokens_reused: int
    loads: int
    failed_loads: int
    aborted_loads: int
    evictions: int
    expirations: int
    queued: int  # cold requests behind the one that is being placed
    placing: str | None
    runners: list[RunnerSummary]
    faults: list[FaultState]
    last_requests: list[SeenRequest]


async def state(node: Node, exchange: Exchange, body: bytes) -> None:
    await exchange.json(state_of(node))


async def faults(node: Node, exchange: Exchange, body: bytes) -> None:
    """Replace all faults by the list in the body; an empty list ends them."""
    try:
        wanted = msgspec.json.decode(body, type=list[Fault])
    except msgspec.DecodeError as exc:
        raise BadRequest(str(exc)) from exc
    node.faults.replace(tuple(wanted))
    await exchange.json({"faults": len(wanted)})


def state_of(node: Node) -> NodeState:
    counters, scheduler = node.counters, node.scheduler
    return NodeState(
        in_flight=counters.in_flight,
        requests=dict(counters.requests),
        served=counters.served,
        cancelled=counters.cancelled,
        failed=counters.failed,
        tokens=counters.tokens,
        prompt_tokens_read=counters.prompt_tokens_read,
        prompt_tokens_reused=counters.prompt_tokens_reused,
        loads=counters.loads,
        failed_loads=counters.failed_loads,
        aborted_loads=counters.aborted_loads,
        evictions=counters.evictions,
        expirations=counters.expirations,
        queued=scheduler.queued,
        placing=scheduler.placing.model.name.short if scheduler.placing is not None else None,
        runners=[_summary(runner) for runner in scheduler.runners.values()],
        faults=[FaultState(each.fault.kind, each.seen, each.fired) for each in node.faults.armed],
        last_requests=list(node.seen),
    )


def model_in(body: bytes) -> str:
    """The model a body asks for, as faults name it; empty when there is none to be read."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    name = parse_name(str(fields.get("model") or "")) if isinstance(fields, dict) else None
    return name.short if name is not None else ""


def _summary(runner: Runner) -> RunnerSummary:
    return RunnerSummary(
        model=runner.model.name.short,
        users=runner.users,
        waiting=runner.waiting,
        is_dead=runner.is_dead,
        is_unloading=runner.state != "ready",
        num_ctx=runner.num_ctx,
        size=runner.placement.size_bytes,
        size_vram=runner.placement.vram_bytes,
        slots=[SlotState(slot.is_taken, slot.tokens) for slot in runner.slots],
    )
