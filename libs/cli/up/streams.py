"""Streams and buckets of a server: what `arriero nats init` does, and `arriero up` before it starts the services."""

import logging

import msgspec
import structlog

from libs.cli.failures import CommandFailed
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.provision import create_missing, drift


class Provisioned(msgspec.Struct, frozen=True):
    created: list[str]
    differences: list[str]


def silence_logs() -> None:
    """A command speaks in sentences; the log lines of libs.common are for services."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


async def provision(
    url: str, user: str, password: str, *, free_disk: int | None = None, replicas: int = 1, check_only: bool = False
) -> Provisioned:
    """Creates what is missing, and says what differs; changes nothing that is there. Raises CommandFailed."""
    bus = Bus(user)
    try:
        await bus.open([part.strip() for part in url.split(",")], password=password, name="arriero-cli")
        created = [] if check_only else await create_missing(bus, replicas=replicas, free_disk=free_disk)
        return Provisioned(created, await drift(bus))
    except BusError as error:
        raise CommandFailed(f"streams cannot be set up: {error}", code="nats") from error
    finally:
        await bus.close()
