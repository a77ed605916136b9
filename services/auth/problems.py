"""Faults as problem documents (RFC 9457), in the same form as the gateway's."""

import math

import msgspec
from starlette.responses import Response

from libs.common.contracts.faults import Fault


def problem(fault: Fault, headers: dict[str, str] | None = None) -> Response:
    sent = {"Cache-Control": "no-store", **retry_after(fault), **(headers or {})}
    return Response(msgspec.json.encode(fault.problem()), fault.meaning.status, sent, "application/problem+json")


def retry_after(fault: Fault) -> dict[str, str]:
    """Whole seconds, never too early (RFC 9110 §10.2.3); nothing where waiting does not help."""
    return {} if fault.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(fault.retry_after_s)))}
