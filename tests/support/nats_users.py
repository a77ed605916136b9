"""A nats-server with the accounts and users that Arriero gives it, each with a seed made now."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from libs.cli.nats_users import Keyed, render
from libs.common.bus.connection import Bus
from libs.common.bus.nkeys import new_seed, public_key
from libs.common.bus.provision import create_missing
from libs.common.contracts.permissions import SERVICES, NatsUser, client_user, worker_user
from tests.support.nats_server import NatsServer, nats_server


class Users:
    """By name: services, `worker-<node>`, clients."""

    def __init__(self, nodes: Sequence[str] = ("n1", "n2"), clients: Sequence[str] = ("billing", "rival")) -> None:
        users = [*SERVICES, *map(worker_user, nodes), *map(client_user, clients)]
        self.by_name: dict[str, NatsUser] = {user.name: user for user in users}
        self.seeds = {name: new_seed() for name in self.by_name}

    @property
    def config(self) -> str:
        return render(Keyed(user, public_key(self.seeds[name])) for name, user in self.by_name.items())

    @contextlib.asynccontextmanager
    async def connected(self, server: NatsServer, name: str) -> AsyncIterator[Bus]:
        bus = Bus(name)
        await bus.open([server.url], nkey_seed=self.seeds[name])
        try:
            yield bus
        finally:
            await bus.close()


@contextlib.asynccontextmanager
async def server_with_users(folder: Path, users: Users, *, provision: bool = True) -> AsyncIterator[NatsServer]:
    async with nats_server(folder, provision=False, config=users.config) as server:
        if provision:
            async with users.connected(server, "admin") as admin:
                await create_missing(admin)
        yield server
