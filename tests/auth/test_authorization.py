"""Every route of auth with every scope (OWASP API5), and what a route without a declared access would be: none."""

import re
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from libs.common.contracts.clients import Scope
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.openapi import Answer, Operation
from services.auth.all_routes import all_routes
from services.auth.oauth_routes import OAuthRoutes
from services.auth.routes import Opening, RouteSpec, guarded
from tests.auth.running import Auth, running_auth
from tests.support.nats_server import NatsServer

NOTHING: Any = None  # handlers are not called for what these tests ask of it
SPECS = all_routes("http://issuer", OAuthRoutes(*7 * [NOTHING]), NOTHING, NOTHING, NOTHING, NOTHING)
FOR_EVERYONE = {"GET /.well-known/jwks.json", "GET /.well-known/oauth-authorization-server"}
FOR_CLIENTS = {"POST /oauth/token", "POST /oauth/revoke", "POST /oauth/introspect"}
FOR_ANY_TOKEN = {"GET /openapi.json"}


def named(spec: RouteSpec) -> str:
    return f"{spec.method} {spec.path}"


def path_of(spec: RouteSpec) -> str:
    return re.sub(r"\{\w+\}", "nobody", spec.path)


def test_what_needs_no_scope_is_known_by_name() -> None:
    """A new route that opens a door is a decision, and this list the place where it is seen."""
    opened = {access: {named(s) for s in SPECS if s.access is access} for access in Opening}
    assert opened == {
        Opening.EVERYONE: FOR_EVERYONE,
        Opening.CLIENT: FOR_CLIENTS,
        Opening.TOKEN: FOR_ANY_TOKEN,
    }


async def test_what_is_served_is_what_is_declared(nats: NatsServer) -> None:
    async with running_auth(nats) as auth:
        app: Any = auth.app
        served = {
            (next(iter(route.methods - {"HEAD"})), route.path) for route in app.routes if isinstance(route, Route)
        }
        assert served == {(spec.method, spec.path) for spec in SPECS}
        assert len(app.routes) == len(SPECS)


async def test_a_route_lets_in_its_scope_and_no_other(nats: NatsServer) -> None:
    async with running_auth(nats) as auth:
        tokens = {}
        for number, scope in enumerate(Scope):
            secret = await auth.create_client(f"only-{number}", scopes=[scope])
            tokens[scope] = await auth.access_token(f"only-{number}", secret, scope)
        key = await auth.create_key("only-0")
        # Last what ends tokens.
        for spec in sorted(SPECS, key=lambda spec: spec.path == "/signing-keys/rotate"):
            await _look(auth, spec, tokens, key)


async def _look(auth: Auth, spec: RouteSpec, tokens: dict[Scope, str], key: str) -> None:
    async def ask(**headers: str) -> int:
        answer = await auth.http.request(spec.method, path_of(spec), headers=headers, content=b"{}")
        if answer.status_code == 403:
            assert str(spec.access) in answer.text, f"{named(spec)} does not say which scope it needs"
        return answer.status_code

    statuses = {scope: await ask(authorization=f"Bearer {token}") for scope, token in tokens.items()}
    if not spec.is_guarded:
        # No token opens or closes it: public, or the client's own secret counts and nothing else.
        assert set(statuses.values()) == ({200} if spec.access is Opening.EVERYONE else {400}), named(spec)
        return
    let_in = {scope for scope, status in statuses.items() if status != 403}
    assert let_in == (set(Scope) if spec.access is Opening.TOKEN else {spec.access}), named(spec)
    assert all(statuses[scope] < 500 and statuses[scope] != 401 for scope in let_in), named(spec)
    for refused in ("", "Bearer nonsense", f"Bearer {key}", "Basic eDp5", f"Digest {tokens[Scope.ADMIN_CLIENTS]}"):
        assert await ask(**({"authorization": refused} if refused else {})) == 401, (named(spec), refused)
    assert await ask(**{"x-api-key": key}) == 401, named(spec)


@pytest.mark.parametrize("access", [*Scope, Opening.TOKEN])
async def test_a_handler_is_not_reached_when_the_guard_refuses(access: Any) -> None:
    reached: list[str] = []

    async def handler(request: Request, actor: str) -> Response:
        reached.append(actor)
        return Response()

    class Refusing:
        def require(self, request: Request, scope: Scope | None) -> str:
            assert scope is (access if isinstance(access, Scope) else None)
            raise failed(Code.FORBIDDEN, "no")

    spec = RouteSpec("GET", "/x", access, handler, Operation("x", (Answer("x"),)))
    route = guarded(spec, Refusing())  # type: ignore[arg-type]
    with pytest.raises(Failed):
        await route.endpoint(Request({"type": "http", "method": "GET", "path": "/x", "headers": []}))
    assert reached == []
