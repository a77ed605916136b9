"""`arriero nats …`."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from libs.cli.failures import CommandFailed
from libs.cli.home import Home
from libs.cli.output import Json, show

app = typer.Typer(
    help="The streams and buckets that Arriero keeps in NATS.", no_args_is_help=True, rich_markup_mode=None
)

ADMIN = "admin"


class Server(msgspec.Struct, frozen=True):
    url: str
    user: str
    password: str
    free_disk: int | None = None


@app.callback()
def _nats() -> None:
    pass


@app.command()
def init(
    check: Annotated[bool, typer.Option("--check", help="Create nothing; say what is missing or differs.")] = False,
    url: Annotated[
        str,
        typer.Option(envvar="ARRIERO_NATS_URL", help="NATS servers, comma separated [default: the running stack's]."),
    ] = "",
    user: Annotated[str, typer.Option(envvar="ARRIERO_NATS_USER", help="A user that may manage JetStream.")] = "",
    password_file: Annotated[
        str,
        typer.Option(
            envvar="ARRIERO_NATS_PASSWORD_FILE", help="A file that holds its password; or set ARRIERO_NATS_PASSWORD."
        ),
    ] = "",
    replicas: Annotated[
        int, typer.Option(min=1, max=5, help="Copies of what is created; 3 in a cluster of three.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Create the streams and buckets that are missing. What exists is compared and never changed.

    Ends with 1 when something differs, or with --check when something is missing.
    """
    from libs.cli.up.streams import provision, silence_logs

    silence_logs()
    server = choose_server(url, user, password_file)
    found = asyncio.run(
        provision(
            server.url,
            server.user,
            server.password,
            free_disk=server.free_disk,
            replicas=replicas,
            check_only=check,
        )
    )
    if found.differences:
        raise CommandFailed(
            f"{server.url} is not as Arriero needs it",
            code="streams_differ",
            more="\n".join(found.differences),
            details=msgspec.to_builtins(found),
        )
    created = "\n".join(f"created {name}" for name in found.created)
    show(msgspec.to_builtins(found), created or "All streams and buckets are there, as they should be.")


def choose_server(url: str, user: str, password_file: str) -> Server:
    """What was named, else the running stack of this home. Raises CommandFailed."""
    if url:
        password = os.environ.get("ARRIERO_NATS_PASSWORD", "")
        if password_file:
            try:
                password = Path(password_file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise CommandFailed(f"cannot read {password_file}: {error.strerror}", code="usage") from error
        return Server(url, user, password)
    from libs.cli.whereabouts import up_file

    home = Home.here()
    running = up_file(home)
    if running is None:
        raise CommandFailed(
            f"no Arriero runs with home {home.path}: name a server with --url or ARRIERO_NATS_URL", code="not_running"
        )
    import shutil

    return Server(running.nats, ADMIN, home.secret(f"nats-{ADMIN}", fresh=False), shutil.disk_usage(home.nats).free)
