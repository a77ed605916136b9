"""The HTTP application: routes as data, each in its frame."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.routing import Match, Route

from services.gateway.credentials import Credentials
from services.gateway.endpoint import Endpoint, nothing_here
from services.gateway.http import Exchange, Receive, Scope, Send
from services.gateway.limits import Limiter
from services.gateway.route import RouteSpec
from services.gateway.sessions import Sessions
from services.gateway.warm_up import WarmUp
from services.gateway.witness import Witness


def create_app(
    specs: list[RouteSpec],
    credentials: Credentials,
    sessions: Sessions,
    *,
    closing: Callable[[], bool],
    warm_up: WarmUp,
    limiter: Limiter,
    witness: Witness,
) -> Any:
    """`closing`: does this process shut down?"""
    # FastAPI's part is the application; the routes are plain ASGI (DESIGN §4), and so its own document would be empty: `openapi`.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    routes = [
        _Route(
            spec.path,
            Endpoint(spec, credentials, sessions, closing=closing, warm_up=warm_up, limiter=limiter, witness=witness),
            methods=[spec.method],
            name=f"{spec.method} {spec.path}",
        )
        for spec in specs
    ]
    for route in routes:
        route.siblings = routes
    app.router.routes = [*routes]
    app.router.redirect_slashes = False
    app.router.default = _unknown  # type: ignore[assignment]  # our Scope is a dict, as uvicorn gives it
    return app.router


async def _unknown(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await nothing_here(Exchange(scope, receive, send))


class _Route(Route):
    """Answers in our dialects what Starlette would answer in plain text: a path that is known, with another method."""

    siblings: list["_Route"]

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] in (self.methods or ()):
            await self.app(scope, receive, send)
            return
        same_path = (route for route in self.siblings if route.matches(scope)[0] is not Match.NONE)
        allowed = sorted({method for route in same_path for method in route.methods or ()})
        await nothing_here(Exchange(scope, receive, send), allowed=allowed)
