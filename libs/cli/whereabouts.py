"""Which Arriero a command talks to, and as whom.

With ARRIERO_URL and ARRIERO_API_KEY: that one. Otherwise the stack that `arriero up` started with this home. For what needs
an administrator: ARRIERO_AUTH_URL, ARRIERO_CLIENT_ID and ARRIERO_CLIENT_SECRET, otherwise the operator of this home.
"""

import os

import msgspec

from libs.cli.failures import CommandFailed
from libs.cli.home import Home, UpFile
from libs.cli.up.processes import OPERATOR

START_IT = "start one with `arriero up`"


class Gateway(msgspec.Struct, frozen=True):
    url: str
    api_key: str


class Administrator(msgspec.Struct, frozen=True):
    auth: str
    client_id: str
    client_secret: str


def up_file(home: Home) -> UpFile | None:
    return home.read(home.up_json, UpFile, remedy="`arriero up` writes it anew when it starts")


def gateway() -> Gateway:
    """Raises CommandFailed when there is none."""
    url, key = os.environ.get("ARRIERO_URL", "").rstrip("/"), os.environ.get("ARRIERO_API_KEY", "")
    if url and key:
        return Gateway(url, key)
    if url:
        raise CommandFailed("ARRIERO_URL is set but ARRIERO_API_KEY is not: set both, or neither", code="usage")
    running = _running(Home.here(), f"{START_IT}, or set ARRIERO_URL and ARRIERO_API_KEY")
    return Gateway(running.gateway, key or running.api_key)


def administrator() -> Administrator:
    """Raises CommandFailed when there is none."""
    given = [os.environ.get(f"ARRIERO_{name}", "") for name in ("AUTH_URL", "CLIENT_ID", "CLIENT_SECRET")]
    if all(given):
        return Administrator(given[0].rstrip("/"), given[1], given[2])
    if given[0]:
        raise CommandFailed("with ARRIERO_AUTH_URL also set ARRIERO_CLIENT_ID and ARRIERO_CLIENT_SECRET", code="usage")
    home = Home.here()
    running = _running(home, f"{START_IT}, or set ARRIERO_AUTH_URL, ARRIERO_CLIENT_ID and ARRIERO_CLIENT_SECRET")
    return Administrator(running.auth, OPERATOR, home.secret(OPERATOR, fresh=False))


def fleet_url() -> str:
    """The gateway that administrators ask; no API key is needed for it."""
    return (
        os.environ.get("ARRIERO_URL", "").rstrip("/")
        or _running(Home.here(), f"{START_IT}, or set ARRIERO_URL").gateway
    )


def _running(home: Home, advice: str) -> UpFile:
    found = up_file(home)
    if found is None:
        raise CommandFailed(f"no Arriero runs with home {home.path}: {advice}", code="not_running")
    return found
