"""How a job looks to its owner (`GET /jobs/{id}`). Pure."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from libs.common.contracts.control import PlaceAnswer
from libs.common.contracts.jobs import Attempt, Binding, Completion, Submission
from libs.common.folder import Entry, Facts
from libs.common.folding import fold
from libs.common.states import JobState
from services.gateway.dialects import public
from services.gateway.predictions import decision_view, place_view


def time_text(ms: int | None) -> str | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def job_view(
    job: str,
    entry: Entry,
    *,
    log: bytes | None = None,
    running: bool = False,
    place: PlaceAnswer | None = None,
    explain: bool = False,
) -> dict[str, Any]:
    """`entry` is the folder's newest record with facts; `log` the body of a `done`, to fold the result from it; `place`
    of a job that waits. `explain` adds why it is where it is."""
    facts = entry.facts
    assert facts is not None
    submission = facts if isinstance(facts, Submission) else facts.job
    view: dict[str, Any] = {
        "id": job,
        "kind": str(submission.kind),
        "model": submission.model,
        "state": str(state_of(facts, running)),
        "priority": str(submission.priority),
        "node": None,
        "epoch": None,
        "lineage": [],
        "attempts": 0,
        **place_view(place),
        "created_at": time_text(entry.at_ms if isinstance(facts, Submission) else facts.created_ms),
        "started_at": None,
        "finished_at": None,
        "result": None,
        "usage": None,
        "timings": None,
        "error": None,
    }
    if submission.metadata is not None:
        view["metadata"] = submission.metadata
    if submission.retry_of is not None:
        view["retry_of"] = submission.retry_of
    if not isinstance(facts, Submission):
        view["lineage"] = [{"epoch": earlier.epoch, "base": earlier.base} for earlier in facts.past]
    if isinstance(facts, Binding):
        view |= {"node": facts.node, "epoch": facts.epoch, "attempts": len(facts.attempts) + (facts.node is not None)}
        view |= _history(facts.attempts)
    if isinstance(facts, Completion):
        view |= {
            "node": facts.node,
            "epoch": facts.epoch,
            "attempts": len(facts.attempts) + (facts.node is not None),
            "started_at": time_text(facts.started_ms),
            "finished_at": time_text(facts.finished_ms),
            "usage": msgspec.to_builtins(facts.usage) if facts.usage else None,
            "timings": msgspec.to_builtins(facts.timings) if facts.timings else None,
            "error": public(facts.fault) if facts.fault else None,
            "result": fold(log).result(submission.kind) if log else None,
        }
        view |= _history(facts.attempts)
    if explain:
        view["decision"] = None if isinstance(facts, Submission) else decision_view(facts.decision)
        view["waiting"] = (place and place.reason) or None
    return view


def row(job: str, facts: Facts, at_ms: int) -> dict[str, Any]:
    """The short form of a listing."""
    view = job_view(job, Entry(0, at_ms, facts, b""))
    return {
        name: view[name] for name in ("id", "kind", "model", "state", "priority", "node", "created_at", "finished_at")
    }


def state_of(facts: Facts, running: bool) -> JobState:
    if isinstance(facts, Completion):
        return facts.state
    if isinstance(facts, Binding) and facts.node is not None:
        return JobState.RUNNING if running else JobState.BOUND
    return JobState.QUEUED


def _history(attempts: tuple[Attempt, ...]) -> dict[str, Any]:
    if not attempts:
        return {}
    return {
        "failed_attempts": [
            {"node": a.node, "epoch": a.epoch, "at": time_text(a.at_ms), "error": public(a.fault)} for a in attempts
        ]
    }
