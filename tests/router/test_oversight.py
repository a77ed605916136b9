"""What is done about a job that a node holds, and whose runs may be stopped."""

from typing import Any

import pytest

from libs.common.contracts.faults import Code
from libs.common.contracts.jobs import PastEpoch
from libs.common.folder import Entry
from services.router.fleet import Hold, NodeView
from services.router.index import Job
from services.router.oversight import ASK_S, OVERDUE_S, AskForRun, Care, Step, TakeBack, TellCancel, fenced, oversee
from tests.router.building import a_beat, a_binding, a_completion, a_key, a_requeue, a_submission

NOW = 500.0


def a_bound_job(**more: Any) -> Job:
    submission = a_submission(deadline_s=10)
    return Job(a_key("j"), submission, 1, 0, 2, binding=a_binding(submission, 1), **more)


def steps(
    job: Job, view: NodeView | None, *, care: Care | None = None, alive: bool = True, now_ms: float = 0
) -> list[Step]:
    return list(oversee(job, care or Care(), view, alive=alive, now=NOW, now_ms=now_ms))


def a_view(*, listed: bool = False, hold: Hold | None = None) -> NodeView:
    run = (a_key("j"), 1)
    view = NodeView("n1", a_beat(running=(run,) if listed else ()), heard_at=NOW)
    if hold is not None:
        view.reserve(run, hold)
    return view


def test_what_its_dead_node_held_is_taken_back_and_nothing_else_is_asked_then() -> None:
    (step,) = steps(a_bound_job(cancel="no"), None, alive=False)
    assert isinstance(step, TakeBack)
    assert step.fault is not None
    assert (step.reason, step.fault.code) == ("node_gone", Code.NODE_FAILED)


@pytest.mark.parametrize("late", [False, True])
def test_a_run_beyond_its_deadline_is_taken_back_after_a_while(late: bool) -> None:
    found = steps(a_bound_job(), a_view(listed=True), now_ms=10_000 + OVERDUE_S * 1000 + late)
    assert found == ([TakeBack(None, "overdue")] if late else [])


@pytest.mark.parametrize(
    ("view", "asks"),
    [
        (a_view(), True),
        (a_view(hold=Hold("m:1")), True),
        (a_view(hold=Hold("m:1", confirmed=3)), False),
        (a_view(listed=True), False),
        (None, False),
    ],
)
def test_a_worker_that_said_nothing_of_a_run_is_asked(view: NodeView | None, asks: bool) -> None:
    assert steps(a_bound_job(), view) == ([AskForRun()] if asks else [])


def test_nobody_is_asked_or_told_twice_within_a_second() -> None:
    job = a_bound_job(cancel="no")
    assert steps(job, a_view()) == [TellCancel(), AskForRun()]
    assert steps(job, a_view(), care=Care(told_at=NOW - ASK_S / 2)) == [AskForRun()]
    assert steps(job, a_view(), care=Care(asked_at=NOW - ASK_S / 2)) == [TellCancel()]
    assert steps(job, a_view(), care=Care(asked_at=NOW - ASK_S, told_at=NOW - ASK_S)) == [TellCancel(), AskForRun()]


def test_a_run_is_stopped_only_by_what_cannot_be_a_stale_leader_speaking() -> None:
    submission = a_submission()

    def says(facts: Any) -> bool:
        return fenced(Entry(9, 0, facts, b""), 5)

    assert fenced(None, 5)
    assert says(a_completion(submission, 1))
    assert says(a_binding(submission, 1, epoch=6))
    assert says(a_requeue(submission, 1, epoch=5, past=(PastEpoch(epoch=5),)))
    assert not says(a_binding(submission, 1, epoch=5))
    assert not says(a_binding(submission, 1, epoch=4))
    assert not says(submission)
