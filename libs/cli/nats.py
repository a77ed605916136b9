"""`arriero nats …`."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from libs.cli.failures import CommandFailed
from libs.cli.home import Home
from libs.cli.output import Json, show

if TYPE_CHECKING:
    from libs.common.contracts.permissions import NatsUser

app = typer.Typer(
    help="The streams and buckets that Arriero keeps in NATS.", no_args_is_help=True, rich_markup_mode=None
)

SECRETS, CONF = "/etc/arriero/secrets", "/etc/arriero/nats/users.conf"


class Server(msgspec.Struct, frozen=True):
    url: str
    user: str
    password: str = ""
    nkey_seed: str = ""
    free_disk: int | None = None
    secrets: str = ""
    conf: Path | None = None


@app.command()
def init(
    check: Annotated[bool, typer.Option("--check", help="Create nothing; say what is missing or differs.")] = False,
    url: Annotated[
        str,
        typer.Option(envvar="ARRIERO_NATS_URL", help="NATS servers, comma separated [default: the running stack's]."),
    ] = "",
    user: Annotated[str, typer.Option(envvar="ARRIERO_NATS_USER", help="A user that may manage JetStream.")] = "admin",
    nkey_file: Annotated[
        str, typer.Option(envvar="ARRIERO_NATS_NKEY_FILE", help="A file that holds its nkey seed.")
    ] = "",
    password_file: Annotated[
        str,
        typer.Option(
            envvar="ARRIERO_NATS_PASSWORD_FILE", help="Or one that holds its password; or set ARRIERO_NATS_PASSWORD."
        ),
    ] = "",
    tls_ca: Annotated[
        str, typer.Option(envvar="ARRIERO_NATS_TLS_CA", help="A file of authorities, for tls:// with one of your own.")
    ] = "",
    tls_cert: Annotated[
        str, typer.Option(envvar="ARRIERO_NATS_TLS_CERT", help="A client certificate, where NATS asks for one.")
    ] = "",
    tls_key: Annotated[str, typer.Option(envvar="ARRIERO_NATS_TLS_KEY", help="Its key.")] = "",
    tls_first: Annotated[
        bool, typer.Option(envvar="ARRIERO_NATS_TLS_FIRST", help="The server has handshake_first.")
    ] = False,
    secrets: Annotated[
        str, typer.Option(metavar="FOLDER", help="With the keys of other users: their permissions are compared, too.")
    ] = "",
    replicas: Annotated[
        int, typer.Option(min=1, max=5, help="Copies of what is created; 3 in a cluster of three.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Create the streams and buckets that are missing. What exists is compared and never changed.

    Of users only they themselves can see what they may do: with --secrets (of the running stack: without) each is asked.
    Ends with 1 when something differs, or with --check when something is missing.
    """
    from libs.cli.up.streams import Login, provision, silence_logs
    from libs.common.bus.tls import Tls

    silence_logs()
    server = choose_server(url, user, nkey_file, password_file)
    seeds = _seeds(secrets, None) if secrets else _seeds(server.secrets, server.conf)
    found = asyncio.run(
        provision(
            Login(
                server.url, server.user, server.password, server.nkey_seed, Tls(tls_ca, tls_cert, tls_key, tls_first)
            ),
            users=seeds,
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
    users = f", and the {len(seeds)} users may what they need" if seeds else ""
    show(msgspec.to_builtins(found), created or f"All streams and buckets are there, as they should be{users}.")


@app.command()
def users(
    node: Annotated[list[str] | None, typer.Option(help="A node that joins; several times for several.")] = None,
    client: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=KEY]",
            help="An internal service; with KEY (U…), the public key of a seed it has made itself.",
        ),
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="USER", help="worker-NODE or client-NAME, whose key is deleted.")
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="A server of the cluster; name all of them, and route.conf is written."),
    ] = None,
    secrets: Annotated[Path, typer.Option(help="The folder of the keys.")] = Path(SECRETS),
    conf: Annotated[Path, typer.Option(help="The file that server.conf or cluster.conf includes.")] = Path(CONF),
    as_json: Json = False,
) -> None:
    """Write nats-server's users, each with what it needs and no more, and make the keys that are missing.

    \b
    SECRETS/nats-gateway.nk, nats-worker-NODE.nk, nats-client-NAME.nk   a user's seed: copy it to where the user runs
    SECRETS/nats-….pub    a public key instead, of a seed that is nowhere here
    CONF                  all users with their public keys and permissions; written whole
    route.conf            beside CONF, with --server: the servers of a cluster, and the password between them

    Those that have a key stay, so name only who is new. Then let nats-server read it again (systemctl reload arriero-nats):
    connections of users that stay go on, those of removed users end.

    \b
    Examples:
      arriero nats users --node gpu-1 --node gpu-2
      arriero nats users --client billing
      arriero nats users --remove worker-gpu-2
      arriero nats users --server nats-1.internal --server nats-2.internal --server nats-3.internal
    """
    from libs.cli import nats_users

    written = nats_users.write(
        secrets, conf, nodes=node or (), clients=client or (), removed=remove or (), servers=server or ()
    )
    lines = [
        *(f"made     {path}" for path in written.made),
        *(f"removed  {name}" for name in written.removed),
        *(f"written  {path}" for path in written.written),
    ]
    reload = "Now let nats-server read it: systemctl reload arriero-nats, on every server of a cluster."
    show(msgspec.to_builtins(written), "\n".join([*lines, reload]) if lines else "Nothing to change.")


def choose_server(url: str, user: str, nkey_file: str = "", password_file: str = "") -> Server:
    """What was named, else the running stack of this home. Raises CommandFailed."""
    if url:
        if nkey_file:
            return Server(url, user, nkey_seed=_read(nkey_file))
        password = _read(password_file) if password_file else os.environ.get("ARRIERO_NATS_PASSWORD", "")
        return Server(url, user if password else "", password)
    from libs.cli import nats_users
    from libs.cli.whereabouts import up_file

    home = Home.here()
    running = up_file(home)
    if running is None:
        raise CommandFailed(
            f"no Arriero runs with home {home.path}: name a server with --url or ARRIERO_NATS_URL", code="not_running"
        )
    import shutil

    admin = nats_users.ADMIN
    free_disk = shutil.disk_usage(home.nats).free
    seed = nats_users.seed(home.secrets, admin)
    return Server(
        running.nats,
        admin.name,
        nkey_seed=seed,
        free_disk=free_disk,
        secrets=str(home.secrets),
        conf=home.nats / "users.conf",
    )


def _seeds(secrets: str, conf: Path | None) -> "dict[NatsUser, str]":
    """Of services and workers; clients cannot ask. With `conf` only those who stand in it: a node may be gone. Raises
    CommandFailed, also when there is none."""
    from libs.cli import nats_users
    from libs.common.bus.nkeys import public_key

    if not secrets:
        return {}
    known = conf.read_text(encoding="utf-8") if conf and conf.exists() else None
    found = {
        user: nats_users.seed(Path(secrets), user)
        for name, user in nats_users.kept(Path(secrets)).items()
        if user.kind not in ("admin", "client") and (Path(secrets) / f"{name}.nk").exists()
    }
    if not found:
        raise CommandFailed(f"{secrets} holds no keys of NATS users", code="usage")
    return {user: seed for user, seed in found.items() if known is None or public_key(seed) in known}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", code="usage") from error
