"""Clients and API keys: the only writer of the bucket `clients`.

A client's record is written by a compare-and-set on the newest record of *all* clients, so that what is decided about several
of them (that somebody is left to administrate) holds when it is written, whatever other replicas do.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
import structlog

from libs.common.bus.buckets import Bucket, value_of
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Conflict, Unconfirmed
from libs.common.bus.stored import Stored
from libs.common.contracts.clients import DEFAULT_SCOPES, ApiKey, Client, Limits, ModelRule, Scope, decode_client
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, failed
from libs.common.contracts.streams import CLIENTS, key_subject
from libs.common.credentials import api_keys
from libs.common.credentials.directory import Directory, api_key_key, client_key
from libs.common.credentials.verifiers import Verifiers
from services.auth import changes

log = structlog.get_logger()

SEEN_WITHIN_S = 2.0  # a write comes back by the follower within milliseconds; later it is known a little later here
OPERATOR_SCOPES = (*DEFAULT_SCOPES, Scope.ADMIN_CLIENTS, Scope.ADMIN_CLUSTER, Scope.AUDIT_READ)
ALL_CLIENTS = client_key("*")
ATTEMPTS = 20  # of a change that others get ahead of

# A deleted client's name stays taken while a job of its may live (7 days to its deadline, 30 days its result), or whoever
# took the name would own them. Markers of deleted keys stay as long: a follower that was away meanwhile must hear of them.
NAME_KEPT_S = 40 * 86400


class NewClient(NamedTuple):
    """The only time that `secret` is known; empty for a client that proves itself by its public keys."""

    client: Client
    secret: str


class NewKey(NamedTuple):
    """The only time that `text` is known."""

    key: ApiKey
    text: str


class Registry:
    def __init__(self, bus: Bus, directory: Directory, verifiers: Verifiers) -> None:
        self._bus = bus
        self._bucket = Bucket(bus, CLIENTS)
        self._directory = directory
        self._verifiers = verifiers

    # -- clients -----------------------------------------------------------------------------------------------------

    async def create_client(self, client: Client, *, with_secret: bool) -> NewClient:
        """`client` has been checked. Raises Failed (ALREADY_EXISTS) for all but one of several creators, and BusError."""
        for key in self._keys_of(client.id):  # of a client of that name whose deletion was cut short, long ago
            await self._bucket.delete(api_key_key(key), ttl_s=NAME_KEPT_S)
        secret = api_keys.new_secret() if with_secret else ""
        verifiers = (self._verifiers.of(secret),) if with_secret else ()
        made = msgspec.structs.replace(client, verifiers=verifiers, created_at=_now())
        if not await self._create(client_key(client.id), encode(made)):
            raise await self._taken(client.id)
        return NewClient(made, secret)

    async def change_client(self, name: str, change: Callable[[Client], Client]) -> Client:
        """The record after `change`, which may be called several times and may raise. Raises Failed (NOT_FOUND,
        LAST_ADMINISTRATOR, UNAVAILABLE), BusError."""
        for _ in range(ATTEMPTS):
            newest = await self._look()
            known = self._directory.clients.get(name)
            if known is None:
                raise no_client(name)
            changed = change(known)
            if changed == known:
                return known
            changes.require_administrator(self._directory.clients, name, changed)
            value = encode(changed)
            try:
                revision = await self._bucket.put(client_key(name), value, expected=newest, among=ALL_CLIENTS)
            except Conflict:
                continue
            except Unconfirmed:
                found, revision = await self._bucket.get(client_key(name))
                if found != value:
                    raise
            await self._directory.seen(revision, within=SEEN_WITHIN_S)
            return changed
        raise _busy()

    async def rotate_client(self, name: str, now: float, *, grace_s: int, end_tokens: bool) -> NewClient:
        """As `change_client`."""
        secret = api_keys.new_secret()
        verifier = self._verifiers.of(secret)
        changed = await self.change_client(
            name, lambda client: changes.rotated(client, verifier, now, grace_s=grace_s, end_tokens=end_tokens)
        )
        return NewClient(changed, secret)

    async def delete_client(self, name: str) -> list[str]:
        """The ids of its keys, which go with it. Once more does no harm, and finishes what was cut short. Raises as
        `change_client`."""
        for _ in range(ATTEMPTS):
            newest = await self._look()
            if name not in self._directory.clients and not self._keys_of(name):
                raise no_client(name)
            if name in self._directory.clients:
                changes.require_administrator(self._directory.clients, name, None)
                try:
                    revision = await self._bucket.delete(
                        client_key(name), expected=newest, among=ALL_CLIENTS, ttl_s=NAME_KEPT_S
                    )
                except Conflict:
                    continue
                # Keys that were written before the client went are known once its going is: none is left behind.
                await self._directory.seen(revision, within=SEEN_WITHIN_S)
            keys = self._keys_of(name)
            for key in keys:
                await self._bucket.delete(api_key_key(key), ttl_s=NAME_KEPT_S)
            return keys
        raise _busy()

    async def ensure_operator(self, name: str, secret: str) -> str:
        """The client `name` exists and has this secret and no other; what had to be done for that, if anything: `create`,
        `rotate`. Comes back after this replica knows it. Raises BusError, Malformed."""
        verifier = self._verifiers.of(secret)
        while True:
            newest = (await self._bucket.get(ALL_CLIENTS))[1]
            found, revision = await self._bucket.get(client_key(name))
            if found is None:
                operator = Client(id=name, name=name, scopes=OPERATOR_SCOPES, verifiers=(verifier,), created_at=_now())
            else:
                known = decode_client(found)
                # Verifiers are equal for equal secrets; comparing them tells nobody anything.
                if known.verifiers == (verifier,) and not known.replaced:
                    await self._directory.seen(revision, within=SEEN_WITHIN_S)
                    return ""
                operator = msgspec.structs.replace(known, verifiers=(verifier,), replaced=())
            try:
                revision = await self._bucket.put(
                    client_key(name), encode(operator), expected=newest, among=ALL_CLIENTS
                )
            except Conflict:
                continue  # another replica starts as well: look at what it wrote
            await self._directory.seen(revision, within=SEEN_WITHIN_S)
            log.info("operator.updated" if found else "operator.created", client=name)
            return "rotate" if found else "create"

    # -- keys --------------------------------------------------------------------------------------------------------

    async def create_key(
        self,
        client: str,
        *,
        name: str = "",
        scopes: tuple[str, ...] | None = None,
        models: ModelRule | None = None,
        limits: Limits | None = None,
        expires_at: int | None = None,
    ) -> NewKey:
        """Raises Failed (NOT_FOUND), BusError."""
        if client not in self._directory.clients:
            raise no_client(client)
        while True:
            text = api_keys.new()
            key = ApiKey(
                id=text.id,
                client=client,
                verifier=self._verifiers.of(text.secret),
                last4=text.secret[-4:],
                name=name,
                scopes=scopes,
                models=models,
                limits=limits,
                expires_at=expires_at,
                created_at=_now(),
            )
            if await self._create(api_key_key(key.id), encode(key)):
                break
        # A deletion of the client that is written after this look finds the key.
        if (await self._bucket.get(client_key(client)))[0] is None:
            await self._bucket.delete(api_key_key(key.id), ttl_s=NAME_KEPT_S)
            raise no_client(client)
        return NewKey(key, str(text))

    async def revoke_key(self, key: str) -> None:
        """Its record goes, and with it the key. Raises Failed (NOT_FOUND), BusError."""
        if key not in self._directory.keys:
            raise no_key(key)
        revision = await self._bucket.delete(api_key_key(key), ttl_s=NAME_KEPT_S)
        await self._directory.seen(revision, within=SEEN_WITHIN_S)

    def _keys_of(self, client: str) -> list[str]:
        return sorted(key.id for key in self._directory.keys.values() if key.client == client)

    # -- records -----------------------------------------------------------------------------------------------------

    async def _look(self) -> int:
        """The revision of the newest client's record, once the directory has all up to it. Raises Failed (UNAVAILABLE)."""
        _, newest = await self._bucket.get(ALL_CLIENTS)
        if not await self._directory.seen(newest, within=SEEN_WITHIN_S):
            raise failed(
                Code.UNAVAILABLE, "The clients are not up to date here. Try again in a moment.", retry_after_s=1
            )
        return newest

    async def _create(self, key: str, value: bytes) -> bool:
        """False when the key has a value, or had one that left a marker. True comes back after this replica knows the new
        record itself."""
        try:
            revision = await self._bucket.put(key, value, expected=0)
        except Conflict:
            return False
        except Unconfirmed:
            found, revision = await self._bucket.get(key)
            if found != value:
                raise
        await self._directory.seen(revision, within=SEEN_WITHIN_S)
        return True

    async def _taken(self, name: str) -> Exception:
        stored: Stored | None = await self._bus.last(f"KV_{CLIENTS}", key_subject(CLIENTS, client_key(name)))
        if stored is not None and value_of(stored) is None:
            until = datetime.fromtimestamp(stored.at_ms / 1000 + NAME_KEPT_S, UTC)
            message = (
                f"A client {name!r} was deleted, and its jobs may live on: the name is free again on {until:%Y-%m-%d}. "
                "Take another name."
            )
        else:
            message = f"There is a client {name!r} already; take another name."
        return failed(Code.ALREADY_EXISTS, message, path="$.name")


def no_client(client: str) -> Exception:
    return failed(Code.NOT_FOUND, f"There is no client {client[:80]!r}.")


def no_key(key: str) -> Exception:
    return failed(Code.NOT_FOUND, f"There is no API key with the id {key[:80]!r}.")


def _busy() -> Exception:
    return failed(Code.UNAVAILABLE, "Others are changing clients at the same time. Try again.", retry_after_s=1)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
