"""What a dialect makes of a request, before it is a job; and what can be said of it without asking anybody. Pure."""

from typing import NamedTuple

from libs.common.contracts.faults import Code, failed
from libs.common.contracts.nodes import DiskModel, canonical_model
from libs.common.contracts.requests import Kind, Priority, Request

_RANKS = list(Priority)


class Wish(NamedTuple):
    """What a dialect makes of a request. Times are seconds. `deadline_asked`: the client itself set it, for this request.
    `num_ctx`: the context that it needs, 0 when it says nothing."""

    kind: Kind
    request: Request
    route: str
    priority: Priority
    deadline_s: float
    result_ttl_s: float
    detached: bool
    num_ctx: int = 0
    deadline_asked: bool = False
    metadata: dict[str, str] | None = None
    include_usage: bool = False
    retry_of: str | None = None
    webhook: str = ""


def capped(asked: Priority, best: Priority) -> Priority:
    """The client's policy bounds what it may ask for."""
    return max(asked, best, key=_RANKS.index)


def check_model(model: str, models: dict[str, DiskModel], *, is_complete: bool = True) -> None:
    """Raises MODEL_NOT_FOUND with the models that exist, UNAVAILABLE when that is not known (yet)."""
    if canonical_model(model) in models:
        return
    if not is_complete:
        raise failed(Code.UNAVAILABLE, "a node has not said yet which models it has; try again", retry_after_s=2)
    if not models:
        raise failed(Code.UNAVAILABLE, "no node with a model has joined the fleet yet; start a worker", retry_after_s=5)
    names = sorted(model.name for model in models.values())
    message = f"no node has the model {model!r}; there are: {', '.join(names[:50])}"
    raise failed(Code.MODEL_NOT_FOUND, message, path="model", details={"models": names})


def output_tokens(request: Request) -> int:
    """At most so many; 0 when the request sets no limit of its own."""
    asked = (request.options or {}).get("num_predict")
    return asked if isinstance(asked, int) and asked > 0 else 0
