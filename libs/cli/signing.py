"""`arriero auth …`: the keys that sign tokens."""

from typing import Annotated, Any

import typer

from libs.cli import client_options as options
from libs.cli.clients import ask
from libs.cli.output import Json, show, table

app = typer.Typer(help="The auth service: the keys that sign its tokens.", no_args_is_help=True, rich_markup_mode=None)


@app.command("keys")
def list_keys(as_json: Json = False) -> None:
    """The keys that sign tokens, or will, or did: public keys are at /.well-known/jwks.json."""
    found = ask(lambda admin: admin.signing_keys())
    show(found, _told(found))


@app.command("rotate")
def rotate(
    now: Annotated[
        bool, typer.Option("--now", help="Emergency: all keys are withdrawn, and every token ends within a second.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Replace the key that signs tokens. Nobody notices: its successor is published first, for five and a half minutes, and
    the old one stays until its last token has ended. By itself it happens every 30 days."""
    found = ask(lambda admin: admin.rotate_signing(now=now))
    withdrawn = len(found["withdrawn"])
    tail = f"\n\n{withdrawn} withdrawn: clients get new tokens by themselves." if withdrawn else ""
    show(found, _told(found) + tail)


def _told(found: dict[str, Any]) -> str:
    rows = [(key["kid"], key["state"], options.when(key["since"]), options.when(key["until"])) for key in found["keys"]]
    return table(rows, ("KEY", "STATE", "SINCE", "UNTIL AT LEAST"))
