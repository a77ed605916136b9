"""What can go wrong, as exceptions that say what to do.

`code` is one of the gateways' (`libs.common.contracts.faults`, and whatever later versions add), or one of this library's own:
`not_connected`, `no_gateway`, `no_answer`, `timed_out`. `retryable`: the same call may succeed later.
"""

from typing import Any

import msgspec

from libs.common.contracts.faults import MEANING, Code


class ArrieroError(Exception):
    code = "error"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        retryable: bool = False,
        path: str | None = None,
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        self.code = code or type(self).code
        super().__init__(f"{self.code}: {message}")
        self.message = message
        self.retryable = retryable
        self.path = path
        self.retry_after_s = retry_after_s
        self.details = details or {}


class NotConnected(ArrieroError):
    """NATS is away, or does not let this user in. Nothing was sent."""

    code = "not_connected"


class NoGateway(ArrieroError):
    """NATS is there, and no gateway listens. Nothing was done."""

    code = "no_gateway"


class NoAnswer(ArrieroError):
    """A request went out and nobody answered in time. Nothing is known of it."""

    code = "no_answer"


class SubmitUnconfirmed(NoAnswer):
    """Perhaps the job is there. With an `idempotency_key` it could have been sent again without a second one."""

    code = "submit_unconfirmed"


class TimedOut(ArrieroError, TimeoutError):
    """The caller's own time was over. The job goes on."""

    code = "timed_out"


class InvalidRequest(ArrieroError):
    """`path` names the field."""


class Unauthenticated(ArrieroError):
    """The gateways do not know this client, or it is disabled."""


class Forbidden(ArrieroError):
    pass


class JobNotFound(ArrieroError):
    """There is no such job, its time is over, it was erased, or it is somebody else's."""


class ModelNotFound(ArrieroError):
    """`details["models"]` has those that are there."""


class IdempotencyMismatch(ArrieroError):
    pass


class TooLarge(ArrieroError):
    code = str(Code.TOO_LARGE)


class Limited(ArrieroError):
    """Too many requests, tokens or waiting jobs of this client; `retry_after_s` says when there will be room."""


class Unavailable(ArrieroError):
    """A part of Arriero is away, or takes nothing new at the moment."""


class PositionLost(ArrieroError):
    """A node died, and nobody can tell what came after that position: read from the beginning."""

    code = str(Code.POSITION_LOST)


class JobFailed(ArrieroError):
    """The job has ended without success; `state` is `failed`, `cancelled` or `expired`."""

    state = "failed"


class JobCancelled(JobFailed):
    state = "cancelled"


class JobExpired(JobFailed):
    state = "expired"


_BY_CODE: dict[str, type[ArrieroError]] = {
    Code.INVALID_REQUEST: InvalidRequest,
    Code.UNSUPPORTED_PARAMETER: InvalidRequest,
    Code.CONTEXT_LENGTH_EXCEEDED: InvalidRequest,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.FORBIDDEN: Forbidden,
    Code.JOB_NOT_FOUND: JobNotFound,
    Code.MODEL_NOT_FOUND: ModelNotFound,
    Code.IDEMPOTENCY_MISMATCH: IdempotencyMismatch,
    Code.TOO_LARGE: TooLarge,
    Code.RATE_LIMITED: Limited,
    Code.QUOTA_EXHAUSTED: Limited,
    Code.QUEUE_FULL: Limited,
    Code.OVERLOADED: Unavailable,
    Code.UNAVAILABLE: Unavailable,
    Code.DRAINING: Unavailable,
    Code.SUBMIT_UNCONFIRMED: SubmitUnconfirmed,
    Code.POSITION_LOST: PositionLost,
}
_BY_STATE = {"cancelled": JobCancelled, "expired": JobExpired}


class Fault(msgspec.Struct):
    """As it comes over the wire: tolerant, so that a code of a later version is an error and not a riddle."""

    code: str = "internal"
    message: str = ""
    path: str | None = None
    retry_after_s: float | None = None
    details: dict[str, Any] | None = None
    retryable: bool = False  # said in a job's view only; of known codes the table says it

    def facts(self) -> dict[str, Any]:
        retryable = MEANING[Code(self.code)].retryable if self.code in MEANING else self.retryable
        return {
            "code": self.code, "retryable": retryable, "path": self.path,
            "retry_after_s": self.retry_after_s, "details": self.details,
        }  # fmt: skip


def error_of(fault: Fault) -> ArrieroError:
    """Of a call that a gateway refused."""
    return _BY_CODE.get(fault.code, ArrieroError)(fault.message, **fault.facts())


def ending_of(state: str, fault: Fault | None) -> JobFailed:
    """Of a job that did not succeed."""
    fault = fault or Fault(code=state, message=f"the job ended as {state}")
    error = _BY_STATE.get(state, JobFailed)(fault.message, **fault.facts())
    error.state = state
    return error
