"""`GET /openapi.json`: the auth service's routes as an OpenAPI document, for whoever has an access token (docs/api.md)."""

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from libs.common import edge
from libs.common.contracts.clients import Scope
from libs.common.contracts.faults import Code
from libs.common.openapi import OAUTH, PROBLEM, Described, Refusals, document
from services.auth import operations
from services.auth.oauth import TOKEN_PATH
from services.auth.routes import Opening, RouteSpec

PATH = "/openapi.json"
ABOUT = (
    "Tokens (OAuth 2), and the administration of clients, keys and the audit trail. Errors are problem documents (RFC 9457), "
    "those of /oauth/… the error objects of RFC 6749. More: docs/api.md."
)
# What is possible on any route.
CODES = (Code.NOT_FOUND, Code.UNAVAILABLE, *edge.CODES)
_GUARDED = (Code.UNAUTHENTICATED, Code.RATE_LIMITED)
_BY_OAUTH = (Code.INVALID_REQUEST, Code.UNAUTHENTICATED, Code.RATE_LIMITED, Code.UNAVAILABLE)  # with their statuses


class OpenApi:
    def __init__(self, routes: Sequence[RouteSpec], issuer: str) -> None:
        self.spec = RouteSpec("GET", PATH, Opening.TOKEN, self.show, operations.DESCRIPTION)
        self._routes = [*routes, self.spec]
        self._issuer = issuer

    async def show(self, request: Request, actor: str) -> Response:
        return Response(self._encoded, headers={"Cache-Control": "no-store"}, media_type="application/json")

    @cached_property
    def _encoded(self) -> bytes:
        return msgspec.json.encode(openapi(self._routes, self._issuer))


def openapi(routes: Sequence[RouteSpec], issuer: str) -> dict[str, Any]:
    return document(
        title="Arriero auth",
        about=ABOUT,
        version=version("arriero"),
        routes=[_described(spec) for spec in routes],
        schemes={
            "bearer": {"type": "http", "scheme": "bearer", "description": "an access token of /oauth/token"},
            "client": {"type": "http", "scheme": "basic", "description": "client_id and client_secret"},
            "oauth2": {
                "type": "oauth2",
                "flows": {
                    "clientCredentials": {
                        "tokenUrl": issuer + TOKEN_PATH,
                        "scopes": {str(scope): "" for scope in Scope},
                    }
                },
            },
        },
    )


def _described(spec: RouteSpec) -> Described:
    codes = (*CODES, *spec.operation.codes)
    refusals = [Refusals(PROBLEM, (*codes, *(_GUARDED if spec.is_guarded else ())))]
    security: list[dict[str, list[str]]] = []
    if spec.access is Opening.CLIENT:
        refusals.append(Refusals(OAUTH, _BY_OAUTH))
        security = [{"client": []}, {}]  # {}: the form can hold the proof, too
    elif spec.is_guarded:
        scopes = [str(spec.access)] if isinstance(spec.access, Scope) else []
        security = [{"bearer": scopes}, {"oauth2": scopes}]
    return Described(spec.method, spec.path, spec.operation, security, refusals)
