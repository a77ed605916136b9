"""A route as data."""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import NamedTuple

from libs.common.contracts.clients import Principal, Scope
from libs.common.openapi import Operation
from services.gateway.http import Exchange

Handler = Callable[[Exchange, Principal], Awaitable[None]]


class Reach(StrEnum):
    """Whose things a route is about, once its scope is there. What is beyond it is answered like what does not exist."""

    OWN_JOBS = "the caller's own jobs"
    OWN_WEBHOOKS = "the caller's own webhooks"
    ALLOWED_MODELS = "models that the caller may use"
    FLEET = "the whole fleet"
    DESCRIPTION = "what this API is"


class RouteSpec(NamedTuple):
    """Every route names the scope it needs, or None when any credential will do; there is no way in without.

    `operation`: what the OpenAPI document says about it. A test fails for a route of ours that has none.
    """

    method: str
    path: str
    scope: Scope | None
    reach: Reach
    handler: Handler
    operation: Operation | None = None
