"""Does a request fit the context that its model has in the whole fleet? Pure.

Only a context that an operator has set is known here. Ollama would cut a prompt that is too long without a word (ollama-facts.md
§2.3), so it is refused before it is stored; what only the model's own tokenizer can tell, the worker has Ollama refuse.
"""

from libs.common.contracts.catalog import ModelPolicy
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.jobs import Submission
from libs.common.contracts.requests import Kind, Request
from services.gateway.prompt import at_least, pieces

_PROMPTS = {Kind.CHAT: "messages", Kind.GENERATE: "prompt"}


def too_long(submission: Submission, request: Request, policy: ModelPolicy) -> Fault | None:
    """The refusal of a request that asks for more than its model's context, or whose prompt and answer are surely longer."""
    limit = policy.num_ctx
    if limit is None:
        return None
    if submission.num_ctx > limit:
        message = (
            f"options.num_ctx is {submission.num_ctx}, but {submission.model} has a context of {limit} tokens in the whole "
            "fleet: ask for less, or have the model's setting raised"
        )
        return _fault(limit, "options.num_ctx", message)
    if submission.kind is Kind.EMBED or request.truncate:  # inputs go one by one; who says that it may be cut means it
        return None
    answer = submission.output_tokens
    if submission.prompt_tokens + answer <= limit or at_least(pieces(submission.kind, request)) + answer <= limit:
        return None
    wanted = f"about {submission.prompt_tokens} tokens of prompt" + (f" and up to {answer} of answer" if answer else "")
    message = (
        f"{wanted} do not fit the context of {limit} tokens that {submission.model} has in the whole fleet: "
        "shorten the prompt, ask for a shorter answer, or have the model's setting raised"
    )
    return _fault(limit, _PROMPTS[submission.kind], message)


def _fault(limit: int, path: str, message: str) -> Fault:
    return Fault(code=Code.CONTEXT_LENGTH_EXCEEDED, message=message, path=path, details={"num_ctx": limit})
