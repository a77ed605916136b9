"""Answers that a port gives by itself, without an application."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, Fault
from libs.common.edge import metrics
from libs.common.edge.front import ALWAYS
from libs.common.edge.request_ids import new_request_id

App = Callable[..., Awaitable[None]]

RETRY_AFTER_S = 5


def plain(fault: Fault, defaults: list[tuple[bytes, bytes]]) -> bytes:
    status, body = fault.meaning.status, encode(fault.problem())
    headers = [
        *defaults,
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"x-request-id", new_request_id().encode()),
        *ALWAYS,
    ]
    lines = [b"%b: %b\r\n" % header for header in headers]
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, HTTPStatus(status).phrase.encode(), b"".join(lines), body)


def crowded_app(alone: bool) -> App:
    if alone:
        message = "as many connections of this address are open as may be (…_MAX_CONNECTIONS_PER_ADDRESS); close some"
        fault = Fault(code=Code.RATE_LIMITED, message=message)
    else:
        fault = Fault(
            code=Code.OVERLOADED, message="as many connections are open here as may be; try again, or elsewhere"
        )
    body = encode(fault.problem())

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        metrics.refused.labels("connections").inc()
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", b"%d" % len(body)),
            (b"retry-after", b"%d" % RETRY_AFTER_S),
            (b"connection", b"close"),
            (b"x-request-id", new_request_id().encode()),
            *ALWAYS,
        ]
        await send({"type": "http.response.start", "status": fault.meaning.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return refuse
