"""All clients and API keys in memory, kept as the bucket `clients` has them: looking one up is a dictionary's work."""

from collections.abc import Callable
from typing import NoReturn

import structlog

from libs.common.bus.buckets import value_of
from libs.common.bus.connection import Bus
from libs.common.bus.follower import Follower
from libs.common.bus.stored import Stored
from libs.common.contracts.clients import ApiKey, Client, decode_api_key, decode_client
from libs.common.contracts.codec import Malformed
from libs.common.contracts.streams import CLIENTS, key_subject

log = structlog.get_logger()


def client_key(client: str) -> str:
    return f"client.{client}"


def api_key_key(key: str) -> str:
    return f"key.{key}"


class Directory:
    """`clients` and `keys` by id. Believe them only while `fresh`: else a revocation may have been missed. `deleted`: names of
    clients that were deleted, as long as markers say so; who is neither there nor here was never seen, or cannot be read.

    `on_change` hears of each record whose client it is about, and None after everything had to be forgotten."""

    def __init__(self, bus: Bus, *, on_change: Callable[[str | None], None] = lambda client: None) -> None:
        self.clients: dict[str, Client] = {}
        self.keys: dict[str, ApiKey] = {}
        self.deleted: set[str] = set()
        self._on_change = on_change
        self._follower = Follower(
            bus, f"KV_{CLIENTS}", [key_subject(CLIENTS, ">")], self._record, on_reset=self._forget
        )

    @property
    def fresh(self) -> bool:
        return self._follower.fresh

    def check(self) -> str | None:
        return None if self.fresh else "clients are not up to date: the bucket is not being heard from"

    async def run(self) -> NoReturn:
        await self._follower.run()
        raise AssertionError("a follower does not end")

    async def seen(self, revision: int, *, within: float) -> bool:
        """Whether all records up to that revision have arrived here, waiting for them `within` seconds at most."""
        return await self._follower.reached(revision, within=within)

    def _forget(self) -> None:
        self.clients.clear()
        self.keys.clear()
        self.deleted.clear()
        self._on_change(None)

    def _record(self, stored: Stored) -> None:
        value = value_of(stored)
        match stored.subject.split(".")[2:]:
            case ["client", name]:
                self._keep_client(name, value)
                self._on_change(name)
            case ["key", name]:
                before = self.keys.get(name)
                self._keep_key(name, value)
                if (key := before or self.keys.get(name)) is not None:
                    self._on_change(key.client)
            case _:
                log.warning("directory.record_ignored", subject=stored.subject)

    # A record that cannot be read takes its client or key out: an old version may allow what the new one forbids.

    def _keep_client(self, name: str, value: bytes | None) -> None:
        self.clients.pop(name, None)
        self.deleted.discard(name)
        if value is None:
            self.deleted.add(name)
            return
        try:
            client = decode_client(value)
        except Malformed as error:
            log.error("directory.record_unreadable", client=name, error=str(error))
            return
        if client.id == name:
            self.clients[name] = client

    def _keep_key(self, name: str, value: bytes | None) -> None:
        self.keys.pop(name, None)
        if value is None:
            return
        try:
            key = decode_api_key(value)
        except Malformed as error:
            log.error("directory.record_unreadable", key=name, error=str(error))
            return
        if key.id == name:
            self.keys[name] = key
