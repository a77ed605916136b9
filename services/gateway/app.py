"""The HTTP application: routes as data, each in its frame."""

from typing import Any

from fastapi import FastAPI
from starlette.routing import Match, Route

from services.gateway.credentials import Credentials
from services.gateway.endpoint import Endpoint, RouteSpec, nothing_here
from services.gateway.http import Exchange, Receive, Scope, Send


def create_app(specs: list[RouteSpec], credentials: Credentials) -> Any:
    # FastAPI's part is the application and, later, the OpenAPI document; the routes are plain ASGI (DESIGN §4).
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.router.routes = [
        Route(spec.path, Endpoint(spec, credentials), methods=[spec.method], name=f"{spec.method} {spec.path}")
        for spec in specs
    ]
    app.router.redirect_slashes = False
    app.router.default = _unknown(app)
    return _Guarded(app)


def _unknown(app: FastAPI) -> Any:
    async def default(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await nothing_here(Exchange(scope, receive, send))

    return default


class _Guarded:
    """Answers in our dialects what Starlette would answer in plain text: paths that are known, with another method."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._router: Any = app.router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        matches = [route.matches(scope)[0] for route in self._app.router.routes]
        if Match.FULL not in matches and Match.PARTIAL in matches:
            await nothing_here(Exchange(scope, receive, send), method_known=False)
            return
        await self._router(scope, receive, send)
