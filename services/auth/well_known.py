"""What everybody may read: the keys that sign tokens, and where the endpoints are."""

from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from libs.common.contracts.clients import Scope
from libs.common.contracts.faults import Code, Fault
from services.auth import operations
from services.auth.keyring import Keyring
from services.auth.oauth import GRANT, TOKEN_PATH
from services.auth.oauth_routes import INTROSPECT_PATH, REVOKE_PATH
from services.auth.presenting import AUTH_METHODS
from services.auth.problems import problem
from services.auth.public_keys import ALGORITHMS
from services.auth.routes import Opening, RouteSpec

JWKS_PATH, METADATA_PATH = "/.well-known/jwks.json", "/.well-known/oauth-authorization-server"


class WellKnown:
    def __init__(self, issuer: str, keyring: Keyring) -> None:
        self._issuer = issuer
        self._keyring = keyring

    @property
    def routes(self) -> list[RouteSpec]:
        issuer_path = urlsplit(
            self._issuer
        ).path  # RFC 8414 §3.1: the well-known part goes before the issuer's own path
        places = [METADATA_PATH, *([METADATA_PATH + issuer_path] if issuer_path else [])]
        return [
            RouteSpec("GET", JWKS_PATH, Opening.EVERYONE, self.jwks, operations.JWKS),
            *(RouteSpec("GET", at, Opening.EVERYONE, self.metadata, operations.METADATA) for at in places),
        ]

    async def jwks(self, request: Request) -> Response:
        if (why := self._keyring.check()) is not None:
            return problem(Fault(code=Code.UNAVAILABLE, message=f"Not ready: {why}. Try again.", retry_after_s=1))
        return _cacheable(self._keyring.jwks())

    async def metadata(self, request: Request) -> Response:
        return _cacheable(_metadata(self._issuer))


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
