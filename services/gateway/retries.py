"""A job that ended without success once more: may it be, and what is asked for then. Pure."""

from libs.common.contracts.faults import Code, failed
from libs.common.contracts.jobs import Completion
from libs.common.contracts.requests import Request
from libs.common.folder import Facts
from libs.common.states import JobState
from services.gateway.wish import Wish


def ended_without_success(facts: Facts | None) -> Completion:
    """Raises Failed: WRONG_STATE."""
    if not isinstance(facts, Completion):
        message = "the job has not ended; wait for its end, or cancel it with DELETE /jobs/{id}"
        raise failed(Code.WRONG_STATE, message)
    if facts.state is JobState.SUCCEEDED:
        message = "the job succeeded: GET /jobs/{id} has its result; submit a new job for another answer"
        raise failed(Code.WRONG_STATE, message)
    return facts


def wish_again(job: str, facts: Completion, request: Request | None, *, webhook: str) -> Wish:
    """`request` None: it is not kept. Raises Failed: REQUEST_GONE."""
    if request is None:
        message = f"the request of a job that ended as {facts.state} is not kept, or its time is over; submit it again"
        raise failed(Code.REQUEST_GONE, message)
    was = facts.job
    return Wish(
        kind=was.kind,
        request=request,
        route=was.route,
        priority=was.priority,
        deadline_s=was.deadline_s,
        result_ttl_s=was.result_ttl_s,
        detached=True,  # whoever retries may come back later: nobody has to watch it
        num_ctx=was.num_ctx,
        metadata=was.metadata,
        include_usage=was.include_usage,
        retry_of=job,
        webhook=webhook,
    )
