"""The shape of an error in each dialect. Pure. Status, code and advice come from `contracts.faults`."""

import math
from enum import StrEnum
from typing import Any

from libs.common.contracts.faults import MEANING, Code, Fault

DEFAULT_RETRY_AFTER_S = 2
# The openai package gives up by itself above it, and waits that long below it; other clients may do neither.
LONGEST_RETRY_AFTER_S = 120


class Dialect(StrEnum):
    ARRIERO = "arriero"  # problem+json, RFC 9457
    OPENAI = "openai"


_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def dialect_of(path: str) -> Dialect:
    return Dialect.OPENAI if path.startswith("/v1/") else Dialect.ARRIERO


def error_body(fault: Fault, dialect: Dialect) -> tuple[str, dict[str, Any]]:
    """(content type, body)."""
    if dialect is Dialect.OPENAI:
        return "application/json", openai_error(fault)
    return "application/problem+json", fault.problem()


def openai_error(fault: Fault) -> dict[str, Any]:
    """As OpenAI's error guide has it; `code` is ours, because theirs name products we do not sell."""
    status = MEANING[fault.code].status
    error: dict[str, Any] = {
        "message": fault.message,
        "type": _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error"),
        "param": fault.path,
        "code": str(fault.code),
    }
    return {"error": error | (fault.details or {})}


def error_headers(fault: Fault) -> list[tuple[bytes, bytes]]:
    headers = []
    status = MEANING[fault.code].status
    if status in (429, 503):
        after = fault.retry_after_s or DEFAULT_RETRY_AFTER_S
        headers.append((b"retry-after", str(max(1, math.ceil(after))).encode()))
        if status == 429:
            headers.append((b"retry-after-ms", str(max(1, math.ceil(after * 1000))).encode()))
            if not MEANING[fault.code].retryable or after > LONGEST_RETRY_AFTER_S:
                headers.append((b"x-should-retry", b"false"))
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="arriero"'))
    return headers


def public(fault: Fault) -> dict[str, Any]:
    """A fault inside a job's view or an event."""
    shown: dict[str, Any] = {
        "code": str(fault.code), "message": fault.message, "retryable": MEANING[fault.code].retryable,
    }  # fmt: skip
    return shown if fault.path is None else shown | {"path": fault.path}


NOT_FOUND_JOB = Fault(
    code=Code.JOB_NOT_FOUND, message="there is no such job; ids are kept until the result's time is over"
)
