"""The HTTP side of the auth service: which path leads where, and how everything that can be raised is answered."""

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
from libs.common.credentials.directory import Directory
from services.auth import metrics
from services.auth.admin import Admin, Unauthorized, refuse, require_ready
from services.auth.bodies import read_body
from services.auth.keyring import Keyring
from services.auth.oauth import AUTH_METHODS, GRANT, Answer, OAuth
from services.auth.problems import problem

log = structlog.get_logger()

TOKEN_PATH, JWKS_PATH, METADATA_PATH = (
    "/oauth/token",
    "/.well-known/jwks.json",
    "/.well-known/oauth-authorization-server",
)
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}  # RFC 6749 §5.1


def build(issuer: str, directory: Directory, keyring: Keyring, oauth: OAuth, admin: Admin) -> Starlette:
    async def token(request: Request) -> Response:
        try:
            body = await read_body(request)
            require_ready(directory, keyring)
        except Failed as error:
            # RFC 6749 §5.2 has no code for these two; `temporarily_unavailable` is the one of §4.1.2.1.
            code = "invalid_request" if error.fault.code == Code.TOO_LARGE else "temporarily_unavailable"
            answer = _oauth_error(error.fault, code)
        else:
            headers = request.headers
            answer = oauth.token(headers.getlist("authorization"), headers.get("content-type", ""), body)
        _record(answer)
        sent = msgspec.json.encode(answer.body)
        return Response(sent, answer.status, {**NO_STORE, **answer.headers}, media_type="application/json")

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
            Route(TOKEN_PATH, token, methods=["POST"]),
            Route(JWKS_PATH, jwks, methods=["GET"]),
            Route(METADATA_PATH, metadata, methods=["GET"]),
            *([Route(METADATA_PATH + issuer_path, metadata, methods=["GET"])] if issuer_path else []),
            *admin.routes,
        ],
        exception_handlers={
            Failed: on_failed,
            Unauthorized: on_unauthorized,
            BusError: on_bus_error,
            HTTPException: on_http,
            Exception: on_anything,
        },
    )


def _record(answer: Answer) -> None:
    if answer.error is None:
        metrics.tokens_issued.inc()
        log.info("token.issued", client=answer.client, scope=answer.body["scope"])
    else:
        metrics.failures.labels(answer.error).inc()
        log.info("token.denied", client=answer.client or "(unknown)", reason=answer.error)


def _oauth_error(fault: Fault, code: str) -> Answer:
    headers = {"Retry-After": "1"} if fault.retry_after_s else {}
    return Answer(fault.meaning.status, {"error": code, "error_description": fault.message}, headers, "")


def _refused(fault: Fault) -> Response:
    metrics.failures.labels(fault.code).inc()
    return problem(fault)


def _cacheable(body: dict[str, Any]) -> Response:
    headers = {"Cache-Control": "public, max-age=300"}
    return Response(msgspec.json.encode(body), 200, headers, media_type="application/json")


def _metadata(issuer: str) -> dict[str, Any]:
    """RFC 8414 §2."""
    return {
        "issuer": issuer,
        "token_endpoint": issuer + TOKEN_PATH,
        "jwks_uri": issuer + JWKS_PATH,
        "scopes_supported": [str(scope) for scope in Scope],
        "response_types_supported": [],
        "grant_types_supported": [GRANT],
        "token_endpoint_auth_methods_supported": AUTH_METHODS,
    }
