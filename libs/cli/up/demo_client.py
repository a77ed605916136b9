"""The client that every fresh stack has, so that there is a credential to try things with, and no way in without one."""

import asyncio
import itertools
from pathlib import Path

import msgspec

from libs.cli import nats_users
from libs.cli.home import Home, MadeClient
from libs.cli.whereabouts import Administrator
from libs.common.contracts.clients import DEFAULT_SCOPES, Scope
from libs.common.contracts.permissions import client_user

NAME = "demo"
# Whoever starts a stack on a machine may look at its nodes; the operator of the home makes clients.
SCOPES = (*DEFAULT_SCOPES, Scope.ADMIN_CLUSTER)


def stored(home: Home) -> MadeClient | None:
    """Raises CommandFailed when its file is damaged."""
    return home.read(
        _file(home),
        MadeClient,
        remedy=f"put the right content back, or move {home.path} away to start afresh",
    )


async def demo_client(home: Home, administrator: Administrator) -> MadeClient:
    """The one of this home, made the first time. A Ctrl-C does not fall between its making and its keeping."""
    known = stored(home)
    if known is not None:
        return known
    making = asyncio.create_task(_make(home, administrator), name="make demo client")
    return await asyncio.shield(making)


async def _make(home: Home, administrator: Administrator) -> MadeClient:
    from libs.cli.admin import administration  # httpx: not before the processes are on their way
    from libs.common.bus.nkeys import public_key

    async with administration(administrator) as admin:
        taken = {client["client_id"] for client in await admin.clients()}
        # A crash may have lost the credentials of an earlier one; auth cannot tell them again.
        name = next(name for n in itertools.count(1) if (name := NAME if n == 1 else f"{NAME}-{n}") not in taken)
        seed = nats_users.ensure_seed(home.secrets, client_user(name)).read_text(encoding="utf-8").strip()
        made = await admin.create_client(name, SCOPES, nats=public_key(seed))
    home.write(_file(home), msgspec.json.encode(made))
    return made


def _file(home: Home) -> Path:
    return home.path / "clients" / f"{NAME}.json"
