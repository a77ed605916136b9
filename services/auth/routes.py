"""A route of the auth service as data, and the guard in front of its handler, which lets in who has what the route names."""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from libs.common.contracts.clients import Scope
from libs.common.openapi import Operation
from services.auth.authorization import Authorization


class Opening(StrEnum):
    """What a route asks for that needs no scope."""

    EVERYONE = "nothing: public by its standard"
    CLIENT = "the client's own id and secret, or assertion"  # the OAuth endpoints see to it themselves
    TOKEN = "any access token"


Access = Scope | Opening
# With a scope, or TOKEN, the handler is given the client who asks, too.
Handler = Callable[..., Awaitable[Response]]


class RouteSpec(NamedTuple):
    """`operation`: what the OpenAPI document says about it."""

    method: str
    path: str
    access: Access
    handler: Handler
    operation: Operation

    @property
    def is_guarded(self) -> bool:
        return self.access not in (Opening.EVERYONE, Opening.CLIENT)


def guarded(spec: RouteSpec, authorization: Authorization) -> Route:
    handler = spec.handler
    if not spec.is_guarded:
        return Route(spec.path, handler, methods=[spec.method])
    scope = spec.access if isinstance(spec.access, Scope) else None

    async def behind_the_guard(request: Request) -> Response:
        return await handler(request, authorization.require(request, scope))

    return Route(spec.path, behind_the_guard, methods=[spec.method])
