"""What is to be done about a job that a node holds: take it back, tell its worker of a cancel, ask for its run. Pure.

`settle` says the same of jobs that no node holds.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.jobs import Binding, Completion
from libs.common.folder import Entry
from services.router.fleet import NodeView
from services.router.index import Job

ASK_S = 1.0  # between two questions about the same run
OVERDUE_S = 20.0  # after its deadline a run that its worker did not end is taken away


@dataclass(slots=True)
class Care:
    """When this process last did what about an unfinished job (monotonic seconds); forgotten with it."""

    asked_at: float = -math.inf  # the worker, about its run
    told_at: float = -math.inf  # the worker, that it is cancelled
    looked_at: float | None = None  # for readers
    unwatched_since: float | None = None


class TakeBack(NamedTuple):
    fault: Fault | None
    reason: str


class TellCancel(NamedTuple):
    pass


class AskForRun(NamedTuple):
    """Nothing was heard of it: the order may be lost, or its answer."""


Step: TypeAlias = TakeBack | TellCancel | AskForRun


def oversee(job: Job, care: Care, view: NodeView | None, *, alive: bool, now: float, now_ms: float) -> tuple[Step, ...]:
    """For a job that is bound. `view`: of its node, whatever boot; `alive`: the boot that holds it may still run it."""
    binding = job.binding
    assert binding is not None
    if not alive:
        fault = Fault(code=Code.NODE_FAILED, message=f"node {binding.node} went away")
        return (TakeBack(fault, "node_gone"),)
    if now_ms > job.deadline_ms + OVERDUE_S * 1000:
        return (TakeBack(None, "overdue"),)
    steps: tuple[Step, ...] = ()
    if job.cancel is not None and now - care.told_at >= ASK_S:
        steps = (TellCancel(),)
    run = (job.key, binding.epoch)
    if view is None or run in view.listed:
        return steps
    hold = view.holds.get(run)
    if (hold is None or hold.confirmed is None) and now - care.asked_at >= ASK_S:
        steps += (AskForRun(),)
    return steps


def fenced(newest: Entry | None, epoch: int) -> bool:
    """The rule for stale leaders, by the newest record of a job's folder: may a run of this epoch be stopped? Only a greater
    epoch, this one listed as past, a final state, or absence count."""
    facts = newest.facts if newest else None
    if isinstance(facts, Binding):
        return facts.epoch > epoch or any(past.epoch == epoch for past in facts.past)
    return facts is None or isinstance(facts, Completion)
