"""Three real nats-servers that keep every stream three times."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.provision import create_missing, drift
from tests.support.nats_server import NatsServer, connected

SERVERS = 3
START_S = 60.0
TRIES = 3  # a port that was free may be taken by the time that its server wants it


class NatsCluster:
    def __init__(self, servers: list[NatsServer]) -> None:
        self.servers = servers

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    async def kill_leader(self, bus: Bus, stream: str) -> NatsServer:
        """Of this stream, as soon as it has one. The server that is gone."""
        names = [name_of(n) for n in range(SERVERS)]
        async with asyncio.timeout(START_S):
            while True:
                with contextlib.suppress(BusError):
                    leader = (await bus.api(f"STREAM.INFO.{stream}"))["cluster"].get("leader")
                    if leader in names:
                        break
                await asyncio.sleep(0.1)
        server = self.servers[names.index(leader)]
        await server.kill()
        return server


def name_of(n: int) -> str:
    return f"nats-{n}"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]


async def _started(folder: Path) -> list[NatsServer]:
    """Raises TimeoutError when one of them does not come up."""
    routes = _free_ports(SERVERS)
    others = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in routes)
    servers = [
        NatsServer(
            folder / name_of(n),
            f'server_name: {name_of(n)}\ncluster {{ name: tests, listen: "127.0.0.1:{port}", routes: [{others}] }}\n',
        )
        for n, port in enumerate(routes)
    ]
    try:
        await asyncio.gather(*(server.start() for server in servers))
    except BaseException:
        for server in servers:
            await server.kill()
        raise
    return servers


async def _provision(bus: Bus) -> None:
    """A cluster that has just met may not have a leader for everything yet."""
    async with asyncio.timeout(START_S):
        while True:
            try:
                await create_missing(bus, replicas=SERVERS, free_disk=4 << 30)
                if not await drift(bus):
                    return
            except BusError:
                pass
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def nats_cluster(folder: Path) -> AsyncIterator[NatsCluster]:
    for attempt in range(TRIES):
        try:
            cluster = NatsCluster(await _started(folder / f"cluster-{attempt}"))
            break
        except TimeoutError:
            if attempt == TRIES - 1:
                raise
    try:
        async with connected(cluster) as bus:
            await _provision(bus)
        yield cluster
    finally:
        await asyncio.gather(*(server.kill() for server in cluster.servers))
