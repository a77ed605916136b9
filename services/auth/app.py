"""The HTTP side of the auth service: which path leads where, and how everything that can be raised is answered."""

from collections.abc import Sequence

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from libs.common.bus.failures import BusError, Unconfirmed
from libs.common.contracts.faults import Code, Failed, Fault
from services.auth import metrics
from services.auth.authorization import Unauthorized, refuse
from services.auth.oauth import TOKEN_PATH
from services.auth.problems import problem

log = structlog.get_logger()


def build(routes: Sequence[Route]) -> Starlette:
    async def on_failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, Failed)
        return _refused(error.fault)

    async def on_unauthorized(request: Request, error: Exception) -> Response:
        assert isinstance(error, Unauthorized)
        metrics.failures.labels(error.fault.code).inc()
        return refuse(error)

    async def on_bus_error(request: Request, error: Exception) -> Response:
        log.warning("request.failed", path=request.url.path, error=str(error))
        if isinstance(error, Unconfirmed):
            message = "It is not known whether this was stored. Look at GET /clients before trying again."
        else:
            message = "The auth service cannot reach NATS. Try again in a moment."
        return _refused(Fault(code=Code.UNAVAILABLE, message=message, retry_after_s=1))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            fault = Fault(code=Code.METHOD_NOT_ALLOWED, message=f"{request.method} is not what this address takes.")
            return problem(fault, {"Allow": ", ".join(_methods_at(request, routes))})
        return problem(Fault(code=Code.NOT_FOUND, message=f"The token endpoint is POST {TOKEN_PATH}."))

    async def on_anything(request: Request, error: Exception) -> Response:
        return _refused(Fault(code=Code.INTERNAL, message="The auth service made a mistake; its log says more."))

    return Starlette(
        routes=list(routes),
        exception_handlers={
            Failed: on_failed,
            Unauthorized: on_unauthorized,
            BusError: on_bus_error,
            HTTPException: on_http,
            Exception: on_anything,
        },
    )


def _methods_at(request: Request, routes: Sequence[Route]) -> list[str]:
    """Of all routes of this address (RFC 9110 §15.5.6); Starlette names those of the first."""
    found = (route.methods or () for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for methods in found for method in methods})


def _refused(fault: Fault) -> Response:
    metrics.failures.labels(fault.code).inc()
    return problem(fault)
