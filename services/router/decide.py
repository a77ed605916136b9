"""Which node gets a job: a pure function from values to a value that carries its reason.

The rule of this version: among nodes that can take it now, those with the model in memory first, then the lowest depth,
then the one that was given a job longest ago. Never more than the slots of a node; never a second cold model while one
loads. (Prices in seconds come with an issue of their own; they replace `_rank`, not the filters.)
"""

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from libs.common.contracts.jobs import Candidate, Decision
from services.router.fleet import Liveness, NodeView

NO_MODEL = "does not have the model"
MAX_CANDIDATES_KEPT = 16  # in the record of a job; a fleet has up to fifty nodes


class Bind(NamedTuple):
    node: str
    boot: str
    decision: Decision


class Hold(NamedTuple):
    """No node takes it now; `reason` is what the client may read."""

    reason: str


Verdict: TypeAlias = Bind | Hold


class Rank(NamedTuple):
    """The smallest gets the job."""

    failed_before: bool
    cold: bool
    depth: int
    last_bound_at: float
    name: str


def decide(
    model: str,
    nodes: Iterable[NodeView],
    *,
    now: float,
    connected_at: float,
    waited_ms: int = 0,
    avoid: frozenset[str] = frozenset(),
) -> Verdict:
    """`model` in its canonical form. Times are monotonic seconds. The same values give the same verdict.

    `avoid`: nodes that have failed this job; any other that can take it comes first.
    """
    able: list[tuple[Rank, NodeView]] = []
    refused: list[tuple[str, str]] = []
    for node in nodes:
        why = objection(model, node, now=now, connected_at=connected_at)
        if why is None:
            able.append((_rank(model, node, avoid), node))
        else:
            refused.append((node.name, why))
    if not able:
        return Hold(_summary({why for _, why in refused}))
    able.sort(key=lambda pair: pair[0])
    rank, chosen = able[0]
    others = [(node.name, _describe(rank)) for rank, node in able[1 : 1 + MAX_CANDIDATES_KEPT]]
    refused.sort()  # the order in which nodes are known means nothing
    decision = Decision(
        node=chosen.name,
        reason=_describe(rank),
        cold=rank.cold,
        waited_ms=waited_ms,
        candidates=tuple(Candidate(node=name, verdict=v) for name, v in (others + refused)[:MAX_CANDIDATES_KEPT]),
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
        return "its Ollama fell silent and is being watched" if node.suspect else "its Ollama does not answer"
    if model not in node.disk:
        return NO_MODEL
    if model in node.suspect:
        return "the model fell silent there and is being watched"
    if beat.cold_stuck and model not in node.loaded:
        return "a load never came there: only models in memory"
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


def _rank(model: str, node: NodeView, avoid: frozenset[str]) -> Rank:
    cold = model not in node.loaded and model not in node.loading
    return Rank(node.name in avoid, cold, len(node.runs), node.last_bound_at, node.name)


def _describe(rank: Rank) -> str:
    failed = "failed this job before, " if rank.failed_before else ""
    return f"{failed}model {'not ' if rank.cold else ''}in memory, depth {rank.depth}"


def _summary(objections: set[str]) -> str:
    """The objections that say most: those of nodes that have the model, if there are any."""
    if not objections:
        return "no node has joined the fleet"
    return "; ".join(sorted(objections - {NO_MODEL})) or "no node has the model"
