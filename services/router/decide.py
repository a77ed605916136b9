"""Which node gets a job: a pure function from values to a value that carries its reason.

The rule of this version: among nodes that can take it now, those with the model in memory first, then the lowest depth,
then the one that was given a job longest ago. Never more than the slots of a node; never a second cold model while one
loads. (Prices in seconds come with an issue of their own; they replace `_rank`, not the filters.)
"""

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from libs.common.contracts.jobs import Candidate, Decision
from services.router.fleet import Liveness, NodeView

MAX_CANDIDATES_KEPT = 16  # in the record of a job; a fleet has up to fifty nodes


class Bind(NamedTuple):
    node: str
    boot: str
    decision: Decision


class Hold(NamedTuple):
    """No node takes it now; `reason` is what the client may read."""

    reason: str


Verdict: TypeAlias = Bind | Hold


def decide(model: str, nodes: Iterable[NodeView], *, now: float, connected_at: float, waited_ms: int = 0) -> Verdict:
    """`model` in its canonical form. Times are monotonic seconds. The same values give the same verdict."""
    able: list[tuple[tuple[bool, int, float, str], NodeView]] = []
    refused: list[Candidate] = []
    for node in nodes:
        why = objection(model, node, now=now, connected_at=connected_at)
        if why is None:
            able.append((_rank(model, node), node))
        else:
            refused.append(Candidate(node=node.name, verdict=why))
    if not able:
        return Hold(_summary(refused))
    able.sort(key=lambda pair: pair[0])
    (cold, depth, _, _), chosen = able[0]
    others = [Candidate(node=node.name, verdict=_describe(*rank[:2])) for rank, node in able[1:]]
    decision = Decision(
        node=chosen.name,
        reason=_describe(cold, depth),
        cold=cold,
        waited_ms=waited_ms,
        candidates=tuple((others + refused)[:MAX_CANDIDATES_KEPT]),
    )
    return Bind(chosen.name, chosen.beat.boot, decision)


def objection(model: str, node: NodeView, *, now: float, connected_at: float) -> str | None:
    """Why this node cannot take a job for that model now; None when it can."""
    if (liveness := node.liveness(now, connected_at)) is not Liveness.ALIVE:
        return f"node is {liveness}"
    beat = node.beat
    if beat.draining:
        return "node is draining"
    if not beat.reachable:
        return "its Ollama does not answer"
    if model not in node.disk:
        return "does not have the model"
    if now < node.set_aside_until:
        return "set aside after failures"
    taken = node.runs
    if len(taken) >= beat.slots:
        return "all slots taken"
    if beat.slots_per_model and sum(other == model for other in taken.values()) >= beat.slots_per_model:
        return "all slots of this model taken"
    if model not in node.loaded and (loading := node.loading) and model not in loading:
        return "another model is loading"
    return None


def _rank(model: str, node: NodeView) -> tuple[bool, int, float, str]:
    return model not in node.loaded and model not in node.loading, len(node.runs), node.last_bound_at, node.name


def _describe(cold: bool, depth: int) -> str:
    return f"model {'not ' if cold else ''}in memory, depth {depth}"


def _summary(refused: list[Candidate]) -> str:
    """The objection that says most: one of a node that has the model, if there is any."""
    if not refused:
        return "no node has joined the fleet"
    having = [candidate for candidate in refused if candidate.verdict != "does not have the model"]
    if not having:
        return "no node has the model"
    return "; ".join(sorted({candidate.verdict for candidate in having}))
