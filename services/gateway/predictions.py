"""What the router expects and why it decided, as clients see it; and what must be refused for it. Pure. All in seconds."""

from typing import Any

from libs.common.contracts.control import PlaceAnswer, QuoteAnswer
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.jobs import Candidate, Decision, Submission

MAX_RETRY_AFTER_S = 3600.0
STARTS_LATER = 0.25  # an expected start that moved by so much of itself is news, and by a second at least


def decision_view(decision: Decision | None) -> dict[str, Any] | None:
    if decision is None:
        return None
    return {
        "node": decision.node,
        "reason": decision.reason,
        "cold": decision.cold,
        "waited_s": decision.waited_ms / 1000,
        "ttft_s": _rounded(decision.ttft_s),
        "load_s": _rounded(decision.load_s),
        "cached_tokens": decision.cached_tokens,
        "candidates": [_candidate(candidate) for candidate in decision.candidates],
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    terms = ("wait_s", "load_s", "prefill_s", "decode_s", "harm_s", "score_s")
    return {"node": candidate.node, "verdict": candidate.verdict} | {
        term: _rounded(getattr(candidate, term)) for term in terms
    }


def quote_view(submission: Submission, answer: QuoteAnswer) -> dict[str, Any]:
    return {
        "dry_run": True,
        "kind": str(submission.kind),
        "model": submission.model,
        "priority": str(submission.priority),
        "prompt_tokens": submission.prompt_tokens,
        "output_tokens": submission.output_tokens or None,
        "num_ctx": submission.num_ctx or None,
        "decision": decision_view(answer.decision),
        "reason": answer.reason or None,
        "eta_s": _rounded(answer.start_s),
        "finish_s": _rounded(answer.finish_s),
    }


def too_late(submission: Submission, answer: QuoteAnswer) -> Fault | None:
    """The refusal of a job that is expected to end after its deadline; None when it is not, or nobody knows."""
    finish_s, deadline_s = answer.finish_s, submission.deadline_s
    if finish_s is None or answer.guessed or finish_s <= deadline_s:
        return None
    message = (
        f"the job would end in about {finish_s:.0f} s, after its deadline of {deadline_s:g} s; it was not stored: "
        "give it more time (deadline_s), ask for less, or try again later"
    )
    return Fault(
        code=Code.DEADLINE_UNMEETABLE,
        message=message,
        path="deadline_s",
        retry_after_s=min(max(1.0, finish_s - deadline_s), MAX_RETRY_AFTER_S),
        details={"deadline_s": deadline_s, "eta_s": _rounded(answer.start_s), "finish_s": _rounded(finish_s)},
    )


def place_view(place: PlaceAnswer | None) -> dict[str, Any]:
    return {"position": place and place.position, "eta_s": _rounded(place.start_s) if place else None}


def is_news(before: PlaceAnswer | None, now: PlaceAnswer | None, *, elapsed_s: float) -> bool:
    """Has a place in the queue changed so much, in so many seconds, that its reader wants to know?"""
    if now is None or now.position is None:  # nobody answers, or it waits no more, which the folder tells
        return False
    if before is None or now.position != before.position:
        return True
    if now.start_s is None or before.start_s is None:
        return now.start_s is not before.start_s
    expected = max(0.0, before.start_s - elapsed_s)
    return abs(now.start_s - expected) > max(1.0, STARTS_LATER * expected)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
