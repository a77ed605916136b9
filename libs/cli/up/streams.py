"""Streams and buckets of a server: what `arriero nats init` does, and `arriero up` before it starts the services."""

import contextlib
import logging
from collections.abc import AsyncIterator

import msgspec
import structlog

from libs.cli.failures import CommandFailed
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.provision import create_missing, drift, own_permissions
from libs.common.bus.tls import Tls
from libs.common.contracts.permissions import NatsUser, missing, permissions

LET_IN_S = 10.0  # a server that answers lets somebody in within milliseconds


class Login(msgspec.Struct, frozen=True):
    """Where NATS is, and as whom: with a password, or a seed."""

    url: str
    user: str
    password: str = ""
    nkey_seed: str = ""
    tls: Tls = Tls()


class Provisioned(msgspec.Struct, frozen=True):
    created: list[str]
    differences: list[str]


def silence_logs() -> None:
    """A command speaks in sentences; the log lines of libs.common are for services."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


async def provision(
    login: Login,
    *,
    users: dict[NatsUser, str] | None = None,
    free_disk: int | None = None,
    replicas: int = 1,
    check_only: bool = False,
) -> Provisioned:
    """Creates what is missing, and says what differs, also of the permissions of `users`, by their seeds; changes nothing that
    is there. Raises CommandFailed."""
    async with connected(login) as bus:
        try:
            created = [] if check_only else await create_missing(bus, replicas=replicas, free_disk=free_disk)
            differences = await drift(bus)
            return Provisioned(created, differences + await other_permissions(login.url, login.tls, users or {}))
        except BusError as error:
            raise CommandFailed(f"streams cannot be set up: {error}", code="nats") from error


@contextlib.asynccontextmanager
async def connected(login: Login) -> AsyncIterator[Bus]:
    """Raises CommandFailed."""
    bus = Bus(login.user)
    try:
        await bus.open(
            [part.strip() for part in login.url.split(",")],
            password=login.password,
            nkey_seed=login.nkey_seed,
            tls=login.tls,
            name="arriero-cli",
        )
        yield bus
    except BusError as error:
        raise CommandFailed(str(error), code="nats") from error
    finally:
        await bus.close()


async def other_permissions(url: str, tls: Tls, users: dict[NatsUser, str]) -> list[str]:
    """How each user's permissions differ from the table, one sentence each; the users sign in for that with their seeds."""
    said = []
    for user, seed in users.items():
        bus = Bus(user.name)
        try:
            servers = [part.strip() for part in url.split(",")]
            await bus.open(servers, nkey_seed=seed, tls=tls, name="arriero-cli", within=LET_IN_S)
            found, wanted = await own_permissions(bus), permissions(user)
        except BusError as error:
            said.append(f"user {user.name} cannot be asked: {error}")
            continue
        finally:
            await bus.close()
        said += [f"user {user.name} may not {lost}" for lost in missing(wanted, found)]
        said += [f"user {user.name} may {more}, which it need not" for more in missing(found, wanted)]
        said += [f"user {user.name} is not denied {entry}" for entry in wanted.deny if entry not in found.deny]
    return said
