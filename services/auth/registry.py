"""Making clients and API keys: the only writer of the bucket `clients`."""

from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
import structlog

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Conflict, Unconfirmed
from libs.common.contracts.clients import DEFAULT_SCOPES, ApiKey, Client, Policy, Scope, decode_client
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, failed
from libs.common.contracts.streams import CLIENTS
from libs.common.credentials import api_keys
from libs.common.credentials.directory import Directory, api_key_key, client_key
from libs.common.credentials.verifiers import Verifiers

log = structlog.get_logger()

SEEN_WITHIN_S = 2.0  # a write comes back by the follower within milliseconds; later it is known a little later here
OPERATOR_SCOPES = (*DEFAULT_SCOPES, Scope.ADMIN_CLIENTS, Scope.ADMIN_CLUSTER)


class NewClient(NamedTuple):
    """The only time that `secret` is known."""

    client: Client
    secret: str


class NewKey(NamedTuple):
    """The only time that `text` is known."""

    key: ApiKey
    text: str


class Registry:
    def __init__(self, bus: Bus, directory: Directory, verifiers: Verifiers) -> None:
        self._bucket = Bucket(bus, CLIENTS)
        self._directory = directory
        self._verifiers = verifiers

    async def create_client(self, name: str, scopes: tuple[str, ...], policy: Policy) -> NewClient:
        """`name` has been checked. Raises Failed (ALREADY_EXISTS) for all but one of several creators, and BusError."""
        secret = api_keys.new_secret()
        client = Client(
            id=name,
            name=name,
            scopes=scopes,
            verifiers=(self._verifiers.of(secret),),
            policy=policy,
            created_at=_now(),
        )
        if not await self._create(client_key(name), encode(client)):
            raise failed(Code.ALREADY_EXISTS, f"There is a client {name!r} already; take another name.", path="$.name")
        return NewClient(client, secret)

    async def create_key(self, client: str) -> NewKey:
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
                created_at=_now(),
            )
            if await self._create(api_key_key(key.id), encode(key)):
                return NewKey(key, str(text))

    async def ensure_operator(self, name: str, secret: str) -> None:
        """The client `name` exists and has this secret and no other. Raises BusError."""
        verifier = self._verifiers.of(secret)
        while True:
            found, revision = await self._bucket.get(client_key(name))
            if found is None:
                operator = Client(id=name, name=name, scopes=OPERATOR_SCOPES, verifiers=(verifier,), created_at=_now())
            else:
                known = decode_client(found)
                # Verifiers are equal for equal secrets; comparing them tells nobody anything.
                if known.verifiers == (verifier,):
                    return
                operator = msgspec.structs.replace(known, verifiers=(verifier,))
            try:
                await self._bucket.put(client_key(name), encode(operator), expected=revision)
            except Conflict:
                continue  # another replica starts as well: look at what it wrote
            log.info("operator.updated" if found else "operator.created", client=name)
            return

    async def _create(self, key: str, value: bytes) -> bool:
        """False when the key has a value. True comes back after this replica knows the new record itself."""
        found, revision = await self._bucket.get(key)
        if found is not None:
            return False
        try:
            revision = await self._bucket.put(key, value, expected=revision)
        except Conflict:
            return False
        except Unconfirmed:
            found, revision = await self._bucket.get(key)
            if found != value:
                raise
        await self._directory.seen(revision, within=SEEN_WITHIN_S)
        return True


def no_client(client: str) -> Exception:
    return failed(Code.NOT_FOUND, f"There is no client {client[:80]!r}.")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
