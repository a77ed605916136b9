"""What of auth's routes goes into the audit trail: each route has an action; who, from where and with which result is seen here.

Refused requests are recorded, too, and who reads like who writes: what administrators see belongs to others.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from joserfc.errors import JoseError
from joserfc.jws import extract_compact
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from libs.common.audit import Audit, Result
from libs.common.bus.failures import BusError
from libs.common.contracts.faults import Code, Failed, Fault
from libs.common.credentials.api_keys import id_of

Endpoint = Callable[[Request], Awaitable[Response]]

# By method and path; empty: nothing that others could want to know.
ACTIONS: dict[tuple[str, str], str] = {
    ("POST", "/oauth/token"): "token.issue",
    ("POST", "/oauth/revoke"): "token.revoke",
    ("POST", "/oauth/introspect"): "token.introspect",
    ("POST", "/clients"): "client.create",
    ("GET", "/clients"): "client.read",
    ("GET", "/clients/{client}"): "client.read",
    ("PATCH", "/clients/{client}"): "client.change",
    ("DELETE", "/clients/{client}"): "client.delete",
    ("POST", "/clients/{client}/disable"): "client.disable",
    ("POST", "/clients/{client}/enable"): "client.enable",
    ("POST", "/clients/{client}/rotate"): "client.rotate",
    ("DELETE", "/clients/{client}/secret"): "client.drop_secret",
    ("POST", "/clients/{client}/keys"): "key.create",
    ("GET", "/clients/{client}/keys"): "key.read",
    ("GET", "/keys"): "key.read",
    ("GET", "/keys/{key}"): "key.read",
    ("DELETE", "/keys/{key}"): "key.revoke",
    ("GET", "/signing-keys"): "signing_key.read",
    ("POST", "/signing-keys/rotate"): "signing_key.rotate",
    ("GET", "/audit"): "audit.read",
    ("GET", "/openapi.json"): "",
}
# Equal ones within a minute become one record with a count.
OFTEN = frozenset({"client.read", "key.read", "signing_key.read", "audit.read", "token.introspect"})
DENIED = frozenset({Code.UNAUTHENTICATED, Code.FORBIDDEN, Code.RATE_LIMITED})
DENIED_BY_OAUTH = frozenset(
    {"invalid_client", "invalid_scope", "invalid_grant", "unauthorized_client", "access_denied", "slow_down"}
)


def note(request: Request, **facts: str) -> None:
    """What only a handler knows, for the record of its request: `actor`, `credential`, `target`, `reason`. Never a secret."""
    noted = getattr(request.state, "noted", None)
    request.state.noted = {**(noted or {}), **{name: value for name, value in facts.items() if value}}


def recorded(routes: Sequence[Route], audit: Audit) -> list[Route]:
    """The same routes, each under the eyes of the trail."""
    made = []
    for route in routes:
        (method,) = (route.methods or set()) - {"HEAD"}
        action = ACTIONS[method, route.path]
        if not action:
            made.append(route)
            continue
        made.append(Route(route.path, _over(route.endpoint, action, audit), methods=[method], name=route.name))
    return made


def _over(endpoint: Endpoint, action: str, audit: Audit) -> Endpoint:
    async def watched(request: Request) -> Response:
        try:
            response = await endpoint(request)
        except Exception as error:
            _record(audit, request, action, *_of_failure(error))
            raise
        _record(audit, request, action, *_of_answer(action, response, request))
        return response

    return watched


def _record(audit: Audit, request: Request, action: str, result: Result, facts: dict[str, str]) -> None:
    noted: dict[str, str] = {**facts, **(getattr(request.state, "noted", None) or {})}
    # What a stranger writes into a path may be anything, a secret too: only who is known names targets.
    named = "/".join(id_of(str(value)) for value in request.path_params.values()) if noted.get("actor") else ""
    target = noted.get("target") or named
    audit.record(
        action,
        result,
        actor=noted.get("actor", ""),
        credential=noted.get("credential", ""),
        address=address_of(request),
        target=target,
        reason=noted.get("reason", ""),
        request_id=getattr(request.state, "request_id", ""),
        folded=action in OFTEN,
    )


def address_of(request: Request) -> str:
    """Of the client; behind trusted proxies, what they say it is (`libs.common.edge.front`)."""
    return request.client.host if request.client else ""


def _of_failure(error: Exception) -> tuple[Result, dict[str, str]]:
    fault = getattr(error, "fault", None)
    if isinstance(error, Failed) or isinstance(fault, Fault):
        code = fault.code if isinstance(fault, Fault) else Code.INTERNAL
        return (Result.DENIED if code in DENIED else Result.FAILED), {"reason": str(code)}
    return Result.FAILED, {"reason": "unavailable" if isinstance(error, BusError) else "internal"}


def _of_answer(action: str, response: Response, request: Request) -> tuple[Result, dict[str, str]]:
    body = _json_of(response)
    if response.status_code >= 400:
        error = str(body.get("error") or body.get("code") or response.status_code)
        denied = error in DENIED_BY_OAUTH or error in DENIED
        return (Result.DENIED if denied else Result.FAILED), {"reason": error}
    if action == "token.issue":
        return Result.ALLOWED, {"target": f"token:{_jti(body)}", "reason": str(body.get("scope", ""))}
    if action == "client.create":
        return Result.ALLOWED, {"target": str(body.get("client_id", "")), "reason": " ".join(body.get("scopes", []))}
    if action == "key.create":
        return Result.ALLOWED, {"target": f"{request.path_params.get('client', '')}/{body.get('key_id', '')}"}
    return Result.ALLOWED, {}


def _json_of(response: Response) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(getattr(response, "body", b"") or b"{}")
    except msgspec.DecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _jti(body: dict[str, Any]) -> str:
    """The id of a token that was just issued: with it, what was done with the token is found again."""
    try:
        claims = msgspec.json.decode(extract_compact(str(body["access_token"]).encode()).payload or b"{}")
        return str(claims.get("jti", ""))
    except (JoseError, KeyError, ValueError, AttributeError, msgspec.DecodeError):
        return ""
