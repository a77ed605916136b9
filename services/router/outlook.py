"""What users are told before it happens: their place, when the first token is due, where a job would go, why not now. Pure."""

import itertools
from typing import NamedTuple

from libs.common.contracts.jobs import Decision
from libs.common.contracts.subjects import JobKey
from services.router import decide, objections
from services.router.look import Look
from services.router.pricing import Ask
from services.router.queue import PendingQueue, Waiting
from services.router.wishes import Placement


class Place(NamedTuple):
    """`start_s`: seconds until the first token; None while no node can run it."""

    position: int
    start_s: float | None


class Prospect(NamedTuple):
    """Where a job would go, were it submitted now. Seconds from now."""

    decision: Decision | None
    reason: str
    start_s: float | None = None
    finish_s: float | None = None


def places(queue: PendingQueue, look: Look, asks: dict[JobKey, Ask]) -> dict[JobKey, Place]:
    """Of all who wait, in one pass."""
    order = queue.order()
    of_model: dict[str, int] = {}
    for job in order:
        of_model[job.model] = of_model.get(job.model, 0) + 1
    seen: dict[str, int] = {}
    found: dict[JobKey, Place] = {}
    for position, job in enumerate(order, start=1):
        seen[job.model] = seen.get(job.model, 0) + 1
        ahead = (seen[job.model] - 1) / of_model[job.model]
        start = look.starts_in(asks[job.key], ahead) if job.key in asks else None
        found[job.key] = Place(position, None if start is None else round(start, 1))
    return found


def prospect(look: Look, job: Waiting, ask: Ask) -> Prospect:
    """A dry run: nothing is held. Those who wait for the model already come first."""
    waits = bool(look.waiting(ask.model))
    placement = None if waits else look.place(job, ask)
    if isinstance(placement, Placement):
        decision = placement.decision
        assert decision.ttft_s is not None
        decode_s = placement.hold.ends_at - look.now - decision.ttft_s
        return Prospect(decision, decision.reason, decision.ttft_s, round(decision.ttft_s + max(0.0, decode_s), 3))
    ranked = look.ranked(ask)
    if not ranked:
        return Prospect(None, why_not(look, ask))
    start = look.starts_in(ask, 1.0)
    assert start is not None
    best = ranked[0]
    refused = itertools.starmap(decide.refused, look.roster.unfit.items())
    decision = decide.explain(best, ranked[1 : decide.MAX_CANDIDATES_KEPT], refused, waited_ms=0)
    return Prospect(decision, why_not(look, ask), round(start, 3), round(start + best.terms.decode_s, 3))


def why_not(look: Look, ask: Ask) -> str:
    """Why a job that waits is not bound now; a sentence for its owner."""
    roster = look.roster
    able, reasons = roster.able(ask.model, ask.priority)
    said = {*roster.unfit.values(), *reasons}
    free = 0
    for name, node in roster.free.items():
        if name in able:
            free += 1
            why = objections.full(ask.model, node)
            if why is None:
                return "waiting for a node that holds the model is quicker than loading it elsewhere"
            said.add(why)
    if free < len(able):
        said.add(objections.ALL_TAKEN)
    return objections.summary(said)
