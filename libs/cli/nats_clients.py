"""NATS users of clients, made and taken out with the client: `arriero client create NAME --nats`, `disable`, `delete`.

Beside a running `arriero up` its nats-server is told at once. Elsewhere the user's seed is a file in the current folder, and
whoever looks after NATS is told which command to run.
"""

import asyncio
import os
import signal
from pathlib import Path
from typing import NamedTuple

from libs.cli import nats_users
from libs.cli.failures import CommandFailed
from libs.cli.home import Home, UpFile
from libs.cli.up import nats_config
from libs.cli.whereabouts import up_file
from libs.common.contracts.permissions import NatsUser, client_user
from libs.common.contracts.subjects import BadToken

HEARD_S = 5.0  # nats-server reads its users within milliseconds
OUT = ".disabled"  # behind the name of a key whose user is taken out


class Key(NamedTuple):
    """`public` for the client's record."""

    seed: str
    public: str


class Admitted(NamedTuple):
    """`told`: what a human should know or do."""

    seed_file: Path
    told: list[str]


def new_key(name: str) -> Key:
    """Nothing is written yet. Raises CommandFailed for a name that no NATS user of a client can have."""
    from libs.common.bus.nkeys import new_seed, public_key

    _user(name)
    seed = new_seed()
    return Key(seed, public_key(seed))


def admit(name: str, key: Key) -> Admitted:
    """Raises CommandFailed."""
    home, running = _beside()
    if running is None:
        path = Path(f"{nats_users.file_name(_user(name))}.nk").absolute()
        nats_users.put(path, key.seed + "\n")
        command = f"arriero nats users --client {name}={key.public} && systemctl reload arriero-nats"
        return Admitted(path, [f"NATS does not know it yet. On the hub: {command}"])
    path = home.secrets / f"{nats_users.file_name(_user(name))}.nk"
    home.write(path, key.seed + "\n")
    env = home.path / f"nats-{name}.env"
    home.write(env, nats_config.environment_file(url=running.nats, client=name, seed_file=path))
    _tell(home, running)
    asyncio.run(_heard(running.nats, name, key.seed))
    return Admitted(path, [f"For the nats command and for programs: {nats_config.sourcing(env)}"])


def take_out(name: str, *, for_good: bool) -> str:
    """Its connections end when NATS has read its users again; until then the gateways refuse it. What to tell. Raises
    CommandFailed."""
    home, running = _beside()
    user = _user(name)
    if running is None:
        return f"It has a NATS user: on the hub, arriero nats users --remove client-{name} && systemctl reload arriero-nats."
    for path in _keys(home, user):
        if for_good:
            path.unlink()
        elif path.suffix != OUT:
            path.rename(path.with_name(path.name + OUT))
    if for_good:
        (home.path / f"nats-{name}.env").unlink(missing_ok=True)
    _tell(home, running)
    return "NATS has ended its connections."


def put_back(name: str, public: str) -> str:
    """After `take_out`. What to tell. Raises CommandFailed."""
    home, running = _beside()
    if running is None:
        command = f"arriero nats users --client {name}={public} && systemctl reload arriero-nats"
        return f"It has a NATS user: on the hub, {command}."
    for path in _keys(home, _user(name)):
        if path.suffix == OUT:
            path.rename(path.with_suffix(""))
    _tell(home, running)
    return "NATS knows it again."


def _keys(home: Home, user: NatsUser) -> list[Path]:
    stem = home.secrets / nats_users.file_name(user)
    named = [Path(f"{stem}{ending}{out}") for ending in (".nk", ".pub") for out in ("", OUT)]
    return [path for path in named if path.exists()]


def _user(name: str) -> NatsUser:
    try:
        return client_user(name)
    except BadToken as error:
        raise CommandFailed(f"{error}", code="usage") from error


def _beside() -> tuple[Home, UpFile | None]:
    """The running stack of this home, unless another one is named (libs.cli.whereabouts)."""
    home = Home.here()
    return home, None if os.environ.get("ARRIERO_AUTH_URL") else up_file(home)


def _tell(home: Home, running: UpFile) -> None:
    from libs.cli.up.stack import write_users

    write_users(home, [name.removeprefix("worker-") for name in running.ops if name.startswith("worker-")])
    try:
        os.kill(running.pids["nats"], signal.SIGHUP)
    except (KeyError, OSError) as error:
        raise CommandFailed(
            "nats-server could not be told: it reads its users when `arriero up` starts it again", code="nats"
        ) from error


async def _heard(url: str, name: str, seed: str) -> None:
    """Until the user is let in."""
    from libs.cli.up.streams import silence_logs
    from libs.common.bus.connection import Bus
    from libs.common.bus.failures import BusError

    silence_logs()
    bus = Bus(name)
    try:
        await bus.open([url], nkey_seed=seed, first="", within=HEARD_S)
    except BusError as error:
        raise CommandFailed(f"the client was made, but nats-server does not let it in: {error}", code="nats") from error
    finally:
        await bus.close()
