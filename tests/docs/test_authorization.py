"""docs/authorization.md has the table of all routes as the code has it."""

from pathlib import Path
from typing import Any

from libs.common.contracts.clients import Scope
from services.auth.all_routes import all_routes as auth_routes
from services.auth.oauth_routes import OAuthRoutes
from services.gateway.internal import SCOPES
from services.gateway.routes import all_routes

PAGE = Path(__file__).parents[2] / "docs" / "authorization.md"
NOTHING: Any = None
ANY = "any credential"


def table() -> str:
    rows = ["| | scope | reaches |", "|---|---|---|"]
    for spec in all_routes(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING):
        needs = f"`{spec.scope}`" if spec.scope else ANY
        rows.append(f"| `{spec.method} {spec.path}` | {needs} | {spec.reach} |")
    rows += [f"| `api.<client>.{verb}` | `{scope}` | the caller's own jobs |" for verb, scope in SCOPES.items()]
    return "\n".join(rows)


def test_the_table_is_the_codes() -> None:
    assert table() in PAGE.read_text(), f"docs/authorization.md must hold:\n{table()}"


def auth_table() -> str:
    rows = ["| | needs |", "|---|---|"]
    for spec in auth_routes("http://issuer", OAuthRoutes(*7 * [NOTHING]), NOTHING, NOTHING, NOTHING, NOTHING):
        needs = f"`{spec.access}`" if isinstance(spec.access, Scope) else str(spec.access)
        rows.append(f"| `{spec.method} {spec.path}` | {needs} |")
    return "\n".join(rows)


def test_the_table_of_auth_is_the_codes() -> None:
    assert auth_table() in PAGE.read_text(), f"docs/authorization.md must hold:\n{auth_table()}"


def test_every_scope_is_explained() -> None:
    assert [scope for scope in Scope if f"| `{scope}` |" not in PAGE.read_text()] == []
