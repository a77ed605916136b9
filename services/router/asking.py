"""A job as queue and prices see it: what its submission says, and what is expected of its answer. Pure."""

from libs.common.contracts.jobs import Completion, Submission
from libs.common.contracts.nodes import canonical_model
from libs.common.contracts.subjects import JobKey
from services.router.index import Job
from services.router.pricing import Ask
from services.router.queue import Waiting, cost
from services.router.rates import Rates


def ask_of(client: str, submission: Submission, rates: Rates, avoid: frozenset[str] = frozenset()) -> Ask:
    model = canonical_model(submission.model)
    return Ask(
        model=model,
        priority=submission.priority,
        prompt_tokens=submission.prompt_tokens,
        output_tokens=rates.answer_tokens(client, model, submission.output_tokens),
        affinity=submission.affinity,
        num_ctx=submission.num_ctx,
        avoid=avoid,
    )


def waiting_of(
    key: JobKey, submission: Submission, ask: Ask, *, submitted: int, created_ms: float, deadline_ms: float
) -> Waiting:
    return Waiting(
        key=key,
        model=ask.model,
        priority=submission.priority,
        submitted=submitted,
        created_ms=created_ms,
        deadline_ms=deadline_ms,
        tokens=cost(ask.prompt_tokens, ask.output_tokens),
        weight=submission.weight,
        max_running=submission.max_running,
    )


def place_of(job: Job, rates: Rates) -> tuple[Waiting, Ask]:
    """For an unfinished job. Nodes that failed it are avoided."""
    attempts = job.binding.attempts if job.binding else ()
    ask = ask_of(job.key.client, job.submission, rates, frozenset(attempt.node for attempt in attempts))
    waiting = waiting_of(
        job.key, job.submission, ask,
        submitted=job.submitted, created_ms=job.created_ms, deadline_ms=job.deadline_ms,
    )  # fmt: skip
    return waiting, ask


def real_cost(done: Completion) -> float | None:
    """What a finished job really cost; None when nothing says so."""
    return cost(done.usage.prompt_tokens, done.usage.completion_tokens) if done.usage else None
