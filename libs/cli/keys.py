"""`arriero key …`."""

import time
from typing import Annotated, Any

import typer

from libs.cli import client_options as options
from libs.cli.clients import Allow, Deny, Expires, LimitOptions, ask
from libs.cli.output import Json, show, table

key_app = typer.Typer(
    help="API keys: for tools that cannot fetch a token.", no_args_is_help=True, rich_markup_mode=None
)


@key_app.command("create")
def create_key(
    client: Annotated[str, typer.Argument(help="The client that the key speaks for.")],
    name: Annotated[str, typer.Option(help="What you call it; it is shown in lists.")] = "",
    scope: Annotated[
        list[str] | None, typer.Option(help="Only this of what its client may; several times for several.")
    ] = None,
    allow: Allow = None,
    deny: Deny = None,
    limit: LimitOptions = None,
    expires: Expires = "",
    as_json: Json = False,
) -> None:
    """Make another API key for a client; it is shown this once. What it may is bounded by what its client may."""
    asked: dict[str, Any] = {"name": name} if name else {}
    if scope:
        asked["scopes"] = scope
    if rule := options.models(allow, deny):
        asked["models"] = rule
    if limits := options.limits(limit):
        asked["limits"] = limits
    if expires not in ("", options.NEVER):
        asked["expires_at"] = options.expiry(expires, time.time())
    made = ask(lambda admin: admin.create_key(client, **asked))
    show(made, f"API key  {made['api_key']}\nkey id   {made['key_id']}\n\nThe key cannot be shown again.")


@key_app.command("list")
def list_keys(
    client: Annotated[str, typer.Argument(help="Only this client's [default: all].")] = "", as_json: Json = False
) -> None:
    """API keys, without their secrets."""
    found = ask(lambda admin: admin.keys(client))
    rows = [
        (
            key["key_id"],
            key["client_id"],
            key["name"] or "-",
            "…" + key["last4"],
            "all" if key["scopes"] is None else " ".join(key["scopes"]),
            options.when(key["expires_at"]),
            key["created_at"],
        )
        for key in found
    ]
    show(found, table(rows, ("KEY ID", "CLIENT", "NAME", "ENDS IN", "SCOPES", "EXPIRES", "CREATED")))


@key_app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id, as `key list` shows it; or the whole key.")],
    as_json: Json = False,
) -> None:
    """The key no longer counts, within a second, for open streams too. It cannot be brought back."""
    from libs.common.credentials.api_keys import id_of

    key_id = id_of(key)  # whoever found a leaked one pastes all of it
    revoked = ask(lambda admin: admin.revoke_key(key_id))
    show(revoked, f"API key {key_id} is revoked.")
