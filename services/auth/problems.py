"""Faults as problem documents (RFC 9457), in the same form as the gateway's."""

from typing import Any

import msgspec
from starlette.responses import Response

from libs.common.contracts.faults import Fault


def problem(fault: Fault, headers: dict[str, str] | None = None) -> Response:
    meaning = fault.meaning
    body: dict[str, Any] = {
        "type": f"urn:arriero:error:{fault.code}",
        "title": meaning.title,
        "status": meaning.status,
        "detail": fault.message,
        "code": fault.code,
        "retryable": meaning.retryable,
    }
    if fault.path is not None:
        body["path"] = fault.path
    sent = {"Cache-Control": "no-store", **(headers or {})}
    if fault.retry_after_s is not None:
        sent["Retry-After"] = str(max(1, round(fault.retry_after_s)))
    body |= fault.details or {}
    return Response(msgspec.json.encode(body), meaning.status, sent, media_type="application/problem+json")
