"""`arriero client …`."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from libs.cli import client_options as options
from libs.cli import nats_clients
from libs.cli.failures import CommandFailed
from libs.cli.output import Json, show, table
from libs.common.contracts.requests import Priority

if TYPE_CHECKING:
    from libs.cli.admin import Admin

T = TypeVar("T")

client_app = typer.Typer(
    help="Clients: who may use Arriero, and for what.", no_args_is_help=True, rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(help="The client's name, which is its id.")]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", help="Only models that fit this pattern (`llama3*`); several times for several; any: all."),
]
Deny = Annotated[list[str] | None, typer.Option("--deny", help="No models that fit this pattern; any: none denied.")]
LimitOptions = Annotated[
    list[str] | None,
    typer.Option("--limit", help=f"NAME=NUMBER; several times for several. Names: {', '.join(options.LIMITS)}."),
]
Expires = Annotated[
    str, typer.Option("--expires", help="When it ends: 30d, 12h, a date, a time of ISO 8601; never: not by itself.")
]
PriorityOption = Annotated[Priority | None, typer.Option(help="The best class that its jobs get.")]
Weight = Annotated[float | None, typer.Option(help="Its share while others wait, too; 2 is twice theirs.")]
MaxRunning = Annotated[int | None, typer.Option(help="At most so many of its jobs at nodes at once; 0: no limit.")]
JwksFile = Annotated[
    Path | None, typer.Option("--jwks", help="File with its public keys (JWKS): it proves itself by private_key_jwt.")
]


@client_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="1 to 40 of A-Z a-z 0-9 _ -; it becomes the client's id.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="Allow this; several times for several. Default: models, inference, and its own jobs."),
    ] = None,
    priority: PriorityOption = None,
    weight: Weight = None,
    max_running: MaxRunning = None,
    allow: Allow = None,
    deny: Deny = None,
    limit: LimitOptions = None,
    jwks: JwksFile = None,
    expires: Expires = "",
    key: Annotated[
        bool | None, typer.Option("--key/--no-key", help="With an API key, too [default: unless --jwks is given].")
    ] = None,
    nats: Annotated[
        bool, typer.Option("--nats", help="With a NATS user that can submit, watch and cancel its jobs (docs/nats.md).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a client with a secret and an API key, which are shown this once.

    Scopes: models:read, inference, jobs:write, jobs:read, jobs:cancel, admin:clients, admin:cluster, audit:read.
    """
    policy = _policy(priority, weight, max_running, allow, deny, limit)
    more: dict[str, Any] = {}
    if jwks is not None:
        more["jwks"] = options.key_set(jwks)
    if expires not in ("", options.NEVER):
        more["expires_at"] = options.expiry(expires, time.time())
    with_key = jwks is None if key is None else key
    nkey = nats_clients.new_key(name) if nats else None
    if nkey:
        more["nats"] = nkey.public
    made = ask(lambda admin: admin.create_client(name, scope or [], policy, with_key=with_key, **more))
    lines = [f"client id      {made.client_id}"]
    lines += [f"client secret  {made.client_secret}"] if made.client_secret else []
    lines += [f"API key        {made.api_key}"] if made.api_key else []
    lines += [f"scopes         {' '.join(made.scopes)}"]
    told: list[str] = []
    if nkey:
        admitted = nats_clients.admit(name, nkey)
        made = msgspec.structs.replace(made, nats=nkey.public, nats_seed_file=str(admitted.seed_file))
        lines += [f"NATS user      {nkey.public}", f"its seed       {admitted.seed_file}"]
        told = admitted.told
    lines += ["", "Neither secret nor key can be shown again."] if made.client_secret or made.api_key else []
    show(msgspec.to_builtins(made), "\n".join([*lines, *told]))


@client_app.command("list")
def list_clients(as_json: Json = False) -> None:
    """All clients, without their secrets."""
    found = ask(lambda admin: admin.clients())
    rows = [
        (client["client_id"], " ".join(client.get("scopes", [])), _state(client), client.get("created_at"))
        for client in found
    ]
    show(found, table(rows, ("CLIENT", "SCOPES", "", "CREATED")))


@client_app.command("show")
def show_client(name: Name, as_json: Json = False) -> None:
    """One client: what it may do, and its keys."""
    client = ask(lambda admin: admin.client(name))
    show(client, describe(client))


@client_app.command("update")
def update(
    name: Name,
    scope: Annotated[list[str] | None, typer.Option(help="Its scopes from now on; several times for several.")] = None,
    priority: PriorityOption = None,
    weight: Weight = None,
    max_running: MaxRunning = None,
    allow: Allow = None,
    deny: Deny = None,
    limit: LimitOptions = None,
    jwks: JwksFile = None,
    expires: Expires = "",
    drop_secret: Annotated[
        bool, typer.Option("--drop-secret", help="It has public keys, and from now on proves itself by them alone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Change what is named; the rest stays. It counts within a second, for open streams too."""
    patch: dict[str, Any] = {"scopes": scope} if scope else {}
    if policy := _policy(priority, weight, max_running, allow, deny, limit):
        patch["policy"] = policy
    if jwks is not None:
        patch["jwks"] = options.key_set(jwks)
    if expires:
        patch["expires_at"] = None if expires == options.NEVER else options.expiry(expires, time.time())
    if not patch and not drop_secret:
        raise CommandFailed("say what to change; `arriero client update --help` lists it", code="usage")

    async def change(admin: "Admin") -> dict[str, Any]:
        changed = await admin.update_client(name, patch) if patch else {}
        return await admin.drop_secret(name) if drop_secret else changed

    client = ask(change)
    show(client, describe(client))


@client_app.command("disable")
def disable(name: Name, as_json: Json = False) -> None:
    """Its tokens and keys no longer count, within a second. Its tokens end for good; its keys and secret come back with
    `enable`."""
    client = ask(lambda admin: admin.change_client(name, "disable"))
    tail = f" {nats_clients.take_out(name, for_good=False)}" if client.get("nats") else ""
    show(client, f"{name} is disabled.{tail}")


@client_app.command("enable")
def enable(name: Name, as_json: Json = False) -> None:
    """It may use its secret and its keys again."""
    client = ask(lambda admin: admin.change_client(name, "enable"))
    tail = f" {nats_clients.put_back(name, client['nats'])}" if client.get("nats") else ""
    show(client, f"{name} is enabled.{tail}")


@client_app.command("rotate")
def rotate(
    name: Name,
    grace: Annotated[str, typer.Option(help="How long the old secret counts beside the new one [default: 24h].")] = "",
    now: Annotated[
        bool, typer.Option("--now", help="The old secret ends at once, and all tokens got with it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """A new secret, shown this once. API keys are not touched: they are replaced by `key create` and `key revoke`."""
    body: dict[str, Any] = {"now": True} if now else {}
    if grace:
        body["grace_s"] = options.grace(grace)
    made = ask(lambda admin: admin.change_client(name, "rotate", body))
    until = max(made["replaced_until"], default=None)
    tail = f"The old secret counts until {options.when(until)}." if until else "The old secret no longer counts."
    show(made, f"client secret  {made['client_secret']}\n\n{tail} The new one cannot be shown again.")


@client_app.command("delete")
def delete(name: Name, as_json: Json = False) -> None:
    """It goes, with its secret, keys and tokens. Its name stays taken for 40 days: so long its jobs may live."""

    async def both(admin: "Admin") -> tuple[str, dict[str, Any]]:
        nats = (await admin.client(name)).get("nats", "")
        return nats, await admin.delete_client(name)

    nats, deleted = ask(both)
    keys = len(deleted["keys"])
    said = f"{name} is deleted" + (f", and {keys} API key{'s' if keys > 1 else ''} with it." if keys else ".")
    show(deleted, said + (f" {nats_clients.take_out(name, for_good=True)}" if nats else ""))


def describe(client: dict[str, Any]) -> str:
    policy = client["policy"]
    lines = [
        ("client", client["client_id"]),
        ("state", _state(client) or "enabled"),
        ("scopes", " ".join(client["scopes"])),
        ("priority", policy["priority"]),
        ("weight", policy["weight"]),
        ("jobs at once", policy["max_running"] or "no limit"),
        ("models", " ".join(policy["models"]["allow"]) or "none"),
        ("not models", " ".join(policy["models"]["deny"])),
        ("limits", " ".join(f"{name}={value}" for name, value in policy["limits"].items() if value) or "none"),
        ("NATS user", client.get("nats", "")),
        ("public keys", " ".join(key["kid"] for key in client["jwks"]["keys"])),
        ("old secrets", " ".join(f"until {options.when(until)}" for until in client["replaced_until"])),
        ("expires", options.when(client["expires_at"])),
        ("created", client["created_at"]),
    ]
    lines += [("key", f"{key['key_id']} …{key['last4']} {key['name']}".rstrip()) for key in client.get("keys", [])]
    return "\n".join(f"{name:<13}{value}" for name, value in lines if value != "")


def _state(client: dict[str, Any]) -> str:
    expires_at = client.get("expires_at")
    if client.get("disabled"):
        return "disabled"
    return "expired" if expires_at is not None and time.time() >= expires_at else ""


def _policy(
    priority: Priority | None,
    weight: float | None,
    max_running: int | None,
    allow: list[str] | None,
    deny: list[str] | None,
    limit: list[str] | None,
) -> dict[str, Any]:
    said = {
        "priority": priority,
        "weight": weight,
        "max_running": max_running,
        "models": options.models(allow, deny) or None,
        "limits": options.limits(limit) or None,
    }
    return {name: value for name, value in said.items() if value is not None}


def ask(question: "Callable[[Admin], Awaitable[T]]") -> T:
    async def asking() -> T:
        from libs.cli.admin import administration
        from libs.cli.whereabouts import administrator

        async with administration(administrator()) as admin:
            return await question(admin)

    return asyncio.run(asking())
