"""All routes of the auth service, as data. docs/authorization.md has the same as a table; what is not here is not served."""

from libs.common.credentials.directory import Directory
from services.auth.admin import Admin
from services.auth.keyring import Keyring
from services.auth.oauth_routes import OAuthRoutes
from services.auth.openapi import OpenApi
from services.auth.registry import Registry
from services.auth.routes import RouteSpec
from services.auth.signing_admin import SigningAdmin
from services.auth.trail import AuditTrail
from services.auth.trail_routes import TrailRoutes
from services.auth.well_known import WellKnown


def all_routes(
    issuer: str,
    oauth: OAuthRoutes,
    directory: Directory,
    registry: Registry,
    keyring: Keyring,
    trail: AuditTrail,
    *,
    operator: str = "",
) -> list[RouteSpec]:
    """`operator`: the client that the settings name."""
    routes = [
        *oauth.routes,
        *Admin(directory, registry, operator=operator).routes,
        *SigningAdmin(keyring).routes,
        *TrailRoutes(trail).routes,
        *WellKnown(issuer, keyring).routes,
    ]
    return [*routes, OpenApi(routes, issuer).spec]
