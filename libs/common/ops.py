"""The ops port of every service: /livez, /readyz, /metrics. Never public, so it is a port of its own.

`/livez`: the event loop turns. `/readyz`: every named check passes; its body says which do not, and why.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

log = structlog.get_logger()

Check = Callable[[], str | None]  # None: fine; else what is wrong
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def _look(check: Check) -> str | None:
    try:
        return check()
    except Exception as error:
        log.exception("check.failed")
        return f"the check itself failed: {type(error).__name__}"


class OpsApp:
    def __init__(self, service: str, checks: dict[str, Check]) -> None:
        self._service = service
        self._checks = checks

    def problems(self) -> dict[str, str]:
        return {name: problem for name, check in self._checks.items() if (problem := _look(check)) is not None}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, content_type, body = self._answer(scope["path"])
        headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, path: str) -> tuple[int, bytes, bytes]:
        match path:
            case "/livez":
                return 200, b"application/json", msgspec.json.encode({"service": self._service, "live": True})
            case "/readyz":
                problems = self.problems()
                body = {"service": self._service, "ready": not problems, "problems": problems}
                return (503 if problems else 200), b"application/json", msgspec.json.encode(body)
            case "/metrics":
                return 200, CONTENT_TYPE_LATEST.encode(), generate_latest(REGISTRY)
        return 404, b"text/plain", b"here are /livez, /readyz and /metrics\n"
