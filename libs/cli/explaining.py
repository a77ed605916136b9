"""`arriero job explain` and `arriero job submit --dry-run`: why a job is, or would be, where it is. Pure."""

from typing import Any

from libs.cli.output import table

_TERMS = {
    "wait_s": "WAIT", "load_s": "LOAD", "prefill_s": "PREFILL", "decode_s": "DECODE", "harm_s": "HARM", "score_s": "SCORE",
}  # fmt: skip


def explained(job: dict[str, Any]) -> str:
    """Of a job as `GET /jobs/{id}?explain=1` gives it."""
    decision = job.get("decision")
    lines = [f"{job['id']}  {job['state']}" + (f" on {job['node']}" if job.get("node") else "")]
    if job.get("position") is not None:
        eta = job.get("eta_s")
        lines.append(f"position {job['position']}" + (f", expected to start in {eta:.1f} s" if eta is not None else ""))
    if job.get("waiting"):
        lines.append(f"it waits: {job['waiting']}")
    if decision is None:
        lines.append("No node was chosen yet." if job.get("finished_at") is None else "No decision is kept of it.")
        return "\n".join(lines)
    return "\n".join([*lines, *_decided(decision)])


def quoted(quote: dict[str, Any]) -> str:
    """Of a dry run."""
    decision = quote.get("decision")
    if decision is None:
        return f"No node could take it: {quote.get('reason') or 'the router does not say why'}"
    lines = [f"It would go to {decision['node']}."]
    times = [
        f"{what} in about {quote[name]:.1f} s"
        for name, what in (("eta_s", "first token"), ("finish_s", "end"))
        if quote.get(name) is not None
    ]
    if times:
        lines.append(", ".join(times))
    return "\n".join([*lines, *_decided(decision)])


def _decided(decision: dict[str, Any]) -> list[str]:
    lines = [f"reason: {decision['reason']}"]
    if decision.get("waited_s"):
        lines.append(f"waited {decision['waited_s']:.1f} s before that")
    if decision.get("ttft_s") is not None:
        load = f", {decision['load_s']:.1f} s of it to load the model" if decision.get("load_s") else ""
        lines.append(f"first token expected {decision['ttft_s']:.1f} s after the decision{load}")
    if decision.get("cached_tokens"):
        lines.append(f"{decision['cached_tokens']} tokens of the prompt are believed to be cached there")
    candidates = sorted(decision.get("candidates") or [], key=lambda each: _rank(each, decision["node"]))
    if candidates:
        rows = [(each["node"], *(_seconds(each.get(term)) for term in _TERMS), each["verdict"]) for each in candidates]
        lines += ["", table(rows, ("NODE", *_TERMS.values(), "VERDICT")), "", "Seconds, as predicted then."]
    return lines


def _rank(candidate: dict[str, Any], chosen: str) -> tuple[bool, float]:
    score = candidate.get("score_s")
    return candidate["node"] != chosen, float("inf") if score is None else score


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
