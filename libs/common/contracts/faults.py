"""Error codes: the closed list of what can go wrong for a caller, with its HTTP status and whether trying again helps.

Every dialect (problem+json, OpenAI, NATS) is drawn from this one table, so that status, code and advice never disagree.
"""

from enum import StrEnum
from typing import Any, NamedTuple

from libs.common.contracts.codec import Contract


class Code(StrEnum):
    INVALID_REQUEST = "invalid_request"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    JOB_NOT_FOUND = "job_not_found"
    MODEL_NOT_FOUND = "model_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    ALREADY_EXISTS = "already_exists"
    POSITION_LOST = "position_lost"
    WRONG_STATE = "wrong_state"
    REQUEST_GONE = "request_gone"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    TOO_LARGE = "too_large"
    CANCELLED = "cancelled"
    INTERNAL = "internal"
    NODE_REJECTED = "node_rejected"
    NODE_FAILED = "node_failed"
    NODE_BUSY = "node_busy"
    INTERRUPTED = "interrupted"
    RESULT_TOO_LARGE = "result_too_large"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    SUBMIT_UNCONFIRMED = "submit_unconfirmed"
    DRAINING = "draining"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    DEADLINE_UNMEETABLE = "deadline_unmeetable"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXHAUSTED = "quota_exhausted"
    QUEUE_FULL = "queue_full"
    LAST_ADMINISTRATOR = "last_administrator"
    REQUEST_TIMEOUT = "request_timeout"
    URI_TOO_LONG = "uri_too_long"
    MISDIRECTED = "misdirected"
    HEADERS_TOO_LARGE = "headers_too_large"


class Meaning(NamedTuple):
    status: int
    retryable: bool
    title: str


MEANING: dict[Code, Meaning] = {
    Code.INVALID_REQUEST: Meaning(400, False, "The request is not valid"),
    Code.UNSUPPORTED_PARAMETER: Meaning(400, False, "A parameter cannot be honoured"),
    Code.CONTEXT_LENGTH_EXCEEDED: Meaning(400, False, "The prompt does not fit the model's context"),
    Code.UNAUTHENTICATED: Meaning(401, False, "No valid credential"),
    Code.FORBIDDEN: Meaning(403, False, "The credential does not allow this"),
    Code.NOT_FOUND: Meaning(404, False, "There is nothing at this address"),
    Code.JOB_NOT_FOUND: Meaning(404, False, "There is no such job"),
    Code.MODEL_NOT_FOUND: Meaning(404, False, "No node has this model"),
    Code.METHOD_NOT_ALLOWED: Meaning(405, False, "This address does not take that method"),
    Code.ALREADY_EXISTS: Meaning(409, False, "There is one of that name already"),
    Code.POSITION_LOST: Meaning(409, False, "The stream cannot go on from that position"),
    Code.WRONG_STATE: Meaning(409, False, "The present state does not allow this"),
    Code.REQUEST_GONE: Meaning(410, False, "The job's request is not kept any more"),
    Code.IDEMPOTENCY_MISMATCH: Meaning(422, False, "The Idempotency-Key was used with another body"),
    Code.TOO_LARGE: Meaning(413, False, "The request is too large"),
    # 499 is nginx's, and Ollama's own, for a client that has gone: nobody else sees it.
    Code.CANCELLED: Meaning(499, False, "The job was cancelled"),
    Code.INTERNAL: Meaning(500, True, "Arriero made a mistake"),
    Code.NODE_REJECTED: Meaning(400, False, "The node refused the request"),
    Code.NODE_FAILED: Meaning(502, True, "The node failed"),
    Code.NODE_BUSY: Meaning(503, True, "The node is busy"),
    Code.INTERRUPTED: Meaning(502, True, "The answer was cut off in the middle"),
    Code.RESULT_TOO_LARGE: Meaning(500, False, "The result is too large to keep"),
    Code.OVERLOADED: Meaning(503, True, "Arriero takes no new jobs at the moment"),
    Code.UNAVAILABLE: Meaning(503, True, "A part of Arriero is away"),
    Code.SUBMIT_UNCONFIRMED: Meaning(503, True, "It is not known whether the job was stored"),
    Code.DRAINING: Meaning(503, True, "This process is shutting down"),
    Code.DEADLINE_EXCEEDED: Meaning(504, False, "The job ran out of time"),
    Code.DEADLINE_UNMEETABLE: Meaning(429, True, "The job would not end in time"),
    Code.RATE_LIMITED: Meaning(429, True, "Too many requests"),
    # Trying again helps tomorrow, or next month; SDKs would try again in seconds.
    Code.QUOTA_EXHAUSTED: Meaning(429, False, "The tokens of this day or month are used up"),
    Code.QUEUE_FULL: Meaning(429, True, "As many jobs of this client wait as may"),
    Code.LAST_ADMINISTRATOR: Meaning(409, False, "Nobody would be left to administrate"),
    # Said by a port, before any service sees the request.
    Code.REQUEST_TIMEOUT: Meaning(408, True, "The request did not come in time"),
    Code.URI_TOO_LONG: Meaning(414, False, "The address is too long"),
    Code.MISDIRECTED: Meaning(421, False, "This is not the host that was asked for"),
    Code.HEADERS_TOO_LARGE: Meaning(431, False, "The headers are too large"),
}


class Fault(Contract, frozen=True, kw_only=True):
    """The one shape of an error between processes, and in a job's record.

    `message` says what was wrong and what to do; it never quotes a prompt or an answer. `path` is the JSON path of the
    offending field. `details` holds what a program may want, such as the models that exist.
    """

    code: Code
    message: str
    path: str | None = None
    retry_after_s: float | None = None
    details: dict[str, Any] | None = None

    @property
    def meaning(self) -> Meaning:
        return MEANING[self.code]

    def problem(self) -> dict[str, Any]:
        """As a problem document, RFC 9457."""
        shown: dict[str, Any] = {
            "type": f"urn:arriero:error:{self.code}",
            "title": self.meaning.title,
            "status": self.meaning.status,
            "detail": self.message,
            "code": str(self.code),
            "retryable": self.meaning.retryable,
        }
        if self.path is not None:
            shown["path"] = self.path
        return shown | (self.details or {})


class Failed(Exception):
    """Raised where a caller is to get `fault` as its answer."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault.code}: {fault.message}")
        self.fault = fault


def failed(code: Code, message: str, **more: Any) -> Failed:
    return Failed(Fault(code=code, message=message, **more))
