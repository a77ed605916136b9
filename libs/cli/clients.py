"""`arriero client …` and `arriero key …`."""

import asyncio
from typing import Annotated, Any

import msgspec
import typer

from libs.cli.home import MadeClient
from libs.cli.output import Json, show, table
from libs.common.contracts.requests import Priority

client_app = typer.Typer(
    help="Clients: who may use Arriero, and for what.", no_args_is_help=True, rich_markup_mode=None
)
key_app = typer.Typer(
    help="API keys: for tools that cannot fetch a token.", no_args_is_help=True, rich_markup_mode=None
)


@client_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="1 to 40 of A-Z a-z 0-9 _ -; it becomes the client's id.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="Allow this; several times for several. Default: models, inference, and its own jobs."),
    ] = None,
    priority: Annotated[Priority | None, typer.Option(help="The best class that its jobs get.")] = None,
    weight: Annotated[float | None, typer.Option(help="Its share while others wait, too; 2 is twice theirs.")] = None,
    max_running: Annotated[
        int | None, typer.Option(help="At most so many of its jobs at nodes at once; 0: no limit.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a client with a secret and an API key, which are shown this once.

    Scopes: models:read, inference, jobs:write, jobs:read, jobs:cancel, admin:clients, admin:cluster.
    """
    policy = {"priority": priority, "weight": weight, "max_running": max_running}
    made = asyncio.run(_create(name, scope or [], {key: value for key, value in policy.items() if value is not None}))
    show(
        msgspec.to_builtins(made),
        f"client id      {made.client_id}\n"
        f"client secret  {made.client_secret}\n"
        f"API key        {made.api_key}\n"
        f"scopes         {' '.join(made.scopes)}\n\n"
        "Neither secret nor key can be shown again.",
    )


@client_app.command("list")
def list_clients(as_json: Json = False) -> None:
    """All clients, without their secrets."""
    found = asyncio.run(_clients())
    rows = [
        (
            client["client_id"],
            " ".join(client.get("scopes", [])),
            "disabled" if client.get("disabled") else "",
            client.get("created_at"),
        )
        for client in found
    ]
    show(found, table(rows, ("CLIENT", "SCOPES", "", "CREATED")))


@key_app.command("create")
def create_key(
    client: Annotated[str, typer.Argument(help="The client that the key speaks for.")],
    as_json: Json = False,
) -> None:
    """Make another API key for a client; it is shown this once."""
    made = asyncio.run(_create_key(client))
    show(made, f"API key  {made['api_key']}\nkey id   {made['key_id']}")


async def _create(name: str, scopes: list[str], policy: dict[str, Any]) -> MadeClient:
    from libs.cli.admin import administration
    from libs.cli.whereabouts import administrator

    async with administration(administrator()) as admin:
        return await admin.create_client(name, scopes, policy)


async def _clients() -> list[dict[str, Any]]:
    from libs.cli.admin import administration
    from libs.cli.whereabouts import administrator

    async with administration(administrator()) as admin:
        return await admin.clients()


async def _create_key(client: str) -> dict[str, Any]:
    from libs.cli.admin import administration
    from libs.cli.whereabouts import administrator

    async with administration(administrator()) as admin:
        return await admin.create_key(client)
