"""The HTTP side of the auth service: which path leads where, and how everything that can be raised is answered."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from libs.common.bus.failures import BusError, Unconfirmed
from libs.common.contracts.clients import Scope
from libs.common.contracts.faults import Code, Failed, Fault
from services.auth import metrics
from services.auth.authorization import Unauthorized, refuse
from services.auth.keyring import Keyring
from services.auth.oauth import GRANT, TOKEN_PATH
from services.auth.oauth_routes import INTROSPECT_PATH, REVOKE_PATH
from services.auth.presenting import AUTH_METHODS
from services.auth.problems import problem
from services.auth.public_keys import ALGORITHMS

log = structlog.get_logger()

JWKS_PATH, METADATA_PATH = "/.well-known/jwks.json", "/.well-known/oauth-authorization-server"


def build(issuer: str, keyring: Keyring, routes: Sequence[Route]) -> Starlette:
    async def jwks(request: Request) -> Response:
        if (why := keyring.check()) is not None:
            return problem(Fault(code=Code.UNAVAILABLE, message=f"Not ready: {why}. Try again.", retry_after_s=1))
        return _cacheable(keyring.jwks())

    async def metadata(request: Request) -> Response:
        return _cacheable(_metadata(issuer))

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
        else:
            fault = Fault(code=Code.NOT_FOUND, message=f"The token endpoint is POST {TOKEN_PATH}.")
        return problem(fault, dict(error.headers or {}))

    async def on_anything(request: Request, error: Exception) -> Response:
        return _refused(Fault(code=Code.INTERNAL, message="The auth service made a mistake; its log says more."))

    issuer_path = urlsplit(issuer).path  # RFC 8414 §3.1: the well-known part goes before the issuer's own path
    return Starlette(
        routes=[
            Route(JWKS_PATH, jwks, methods=["GET"]),
            Route(METADATA_PATH, metadata, methods=["GET"]),
            *([Route(METADATA_PATH + issuer_path, metadata, methods=["GET"])] if issuer_path else []),
            *routes,
        ],
        exception_handlers={
            Failed: on_failed,
            Unauthorized: on_unauthorized,
            BusError: on_bus_error,
            HTTPException: on_http,
            Exception: on_anything,
        },
    )


def _refused(fault: Fault) -> Response:
    metrics.failures.labels(fault.code).inc()
    return problem(fault)


def _cacheable(body: dict[str, Any]) -> Response:
    headers = {"Cache-Control": "public, max-age=300"}
    return Response(msgspec.json.encode(body), 200, headers, media_type="application/json")


def _metadata(issuer: str) -> dict[str, Any]:
    """RFC 8414 §2."""
    metadata: dict[str, Any] = {
        "issuer": issuer,
        "token_endpoint": issuer + TOKEN_PATH,
        "revocation_endpoint": issuer + REVOKE_PATH,
        "introspection_endpoint": issuer + INTROSPECT_PATH,
        "jwks_uri": issuer + JWKS_PATH,
        "scopes_supported": [str(scope) for scope in Scope],
        "response_types_supported": [],
        "grant_types_supported": [GRANT],
    }
    for endpoint in ("token", "revocation", "introspection"):
        metadata[f"{endpoint}_endpoint_auth_methods_supported"] = AUTH_METHODS
        metadata[f"{endpoint}_endpoint_auth_signing_alg_values_supported"] = list(ALGORITHMS)
    return metadata
