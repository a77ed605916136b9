"""`GET /openapi.json`: the gateway's routes as an OpenAPI document, for whoever has a credential (docs/api.md)."""

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

from libs.common import edge
from libs.common.contracts.clients import Principal, Scope
from libs.common.contracts.codec import encode
from libs.common.openapi import OPENAI, PROBLEM, Described, Header, Refusals, document
from services.gateway import endpoint, operations
from services.gateway.dialects import Dialect, dialect_of
from services.gateway.http import Exchange
from services.gateway.route import Reach, RouteSpec

PATH = "/openapi.json"
ABOUT = (
    "Durable jobs on a fleet of Ollama nodes, in Arriero's own form and in OpenAI's. Every error is a problem document "
    "(RFC 9457), below /v1 an error object of OpenAI; `code` says which it is. Unknown query parameters are ignored. "
    "A GET may be a HEAD. More: docs/api.md."
)
_LEFT = tuple(
    Header(f"x-ratelimit-{what}-{of}", f"{about} (for clients with such a limit)")
    for of in ("requests", "tokens")
    for what, about in (
        ("limit", "how many"),
        ("remaining", "how many are left"),
        ("reset", "until all are back, as `6m0s`"),
    )
)


class OpenApi:
    """`issuer`: where tokens come from."""

    def __init__(self, routes: Sequence[RouteSpec], issuer: str) -> None:
        self.spec = RouteSpec("GET", PATH, None, Reach.DESCRIPTION, self.show, operations.DESCRIPTION)
        self._routes = [*routes, self.spec]
        self._issuer = issuer

    async def show(self, exchange: Exchange, principal: Principal) -> None:
        await exchange.respond(200, self._encoded)

    @cached_property
    def _encoded(self) -> bytes:
        return encode(openapi(self._routes, self._issuer))


def openapi(routes: Sequence[RouteSpec], issuer: str) -> dict[str, Any]:
    return document(
        title="Arriero gateway",
        about=ABOUT,
        version=version("arriero"),
        routes=[_described(spec) for spec in routes if spec.operation is not None],
        schemes={
            "bearer": {"type": "http", "scheme": "bearer", "description": "an access token, or an API key"},
            "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            "azure_key": {"type": "apiKey", "in": "header", "name": "api-key"},
            "basic": {"type": "http", "scheme": "basic", "description": "an API key as the password"},
            "oauth2": {
                "type": "oauth2",
                "flows": {
                    "clientCredentials": {
                        "tokenUrl": f"{issuer}/oauth/token",
                        "scopes": {str(scope): "" for scope in Scope},
                    }
                },
            },
        },
    )


def _described(spec: RouteSpec) -> Described:
    assert spec.operation is not None
    scopes = [] if spec.scope is None else [str(spec.scope)]
    codes = (*endpoint.CODES, *spec.operation.codes)
    if dialect_of(spec.path) is Dialect.OPENAI:
        refusals = [Refusals(OPENAI, codes), Refusals(PROBLEM, edge.CODES)]
    else:
        refusals = [Refusals(PROBLEM, (*codes, *edge.CODES))]
    schemes = ("bearer", "key", "azure_key", "basic", "oauth2")
    return Described(
        spec.method, spec.path, spec.operation, [{name: scopes} for name in schemes], refusals, headers=_LEFT
    )
