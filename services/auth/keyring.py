"""The signing keys, shared by all replicas of the service through one record of the bucket `signing`.

One record for all keys, so that every change is one compare-and-set and replicas never disagree about which key is active.
States: `next` is published but does not sign yet, `active` signs, `retiring` is published until its last token has expired.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any, Literal, cast

import msgspec
import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet

from libs.common.bus.buckets import Bucket, value_of
from libs.common.bus.connection import Bus, Stored
from libs.common.bus.failures import BusError, Conflict
from libs.common.bus.follower import Follower
from libs.common.contracts.codec import Contract, Decoder, Malformed, encode
from libs.common.contracts.streams import SIGNING, key_subject
from libs.common.credentials.tokens import ALGORITHM
from services.auth.sealing import CannotOpen, Seal

log = structlog.get_logger()

RECORD = "keyring"
LOOK_AGAIN_S = 0.5


class SigningKey(Contract, frozen=True, kw_only=True):
    """`kid` is the thumbprint of RFC 7638; `sealed` the private key."""

    kid: str
    state: Literal["next", "active", "retiring"]
    public: dict[str, Any]
    sealed: str
    created_at: str


class Ring(Contract, frozen=True, kw_only=True):
    keys: tuple[SigningKey, ...]


decode_ring = Decoder(Ring)


class Keyring:
    """What the record holds now. `run` follows it, and makes the first key when there is none."""

    def __init__(self, bus: Bus, cluster_secret: bytes) -> None:
        self.public: dict[str, ECKey] = {}
        self.active: KeySet | None = None
        self._stored = False
        self._problem: str | None = "no signing key yet"
        self._bucket = Bucket(bus, SIGNING)
        self._seal = Seal(cluster_secret)
        self._follower = Follower(
            bus, f"KV_{SIGNING}", [key_subject(SIGNING, RECORD)], self._record, on_reset=self._forget
        )

    def check(self) -> str | None:
        return self._problem

    def jwks(self) -> dict[str, Any]:
        """RFC 7517 §5; the public parts of all keys, whatever their state."""
        return {"keys": [key.as_dict(private=False) for key in self.public.values()]}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follower.run())
            tasks.create_task(self._keep_one())

    async def _keep_one(self) -> None:
        while True:
            await self._follower.caught_up.wait()
            if not self._stored:
                try:
                    await self._create()
                except BusError as error:
                    log.warning("keyring.create_failed", error=str(error))
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _create(self) -> None:
        found, revision = await self._bucket.get(RECORD)
        if found is not None:
            return
        ring = Ring(keys=(self._generate(),))
        try:
            await self._bucket.put(RECORD, encode(ring), expected=revision)
        except Conflict:
            return  # another replica was first: its key comes by the follower, ours is forgotten
        log.info("keyring.created", kid=ring.keys[0].kid)

    def _generate(self) -> SigningKey:
        key = ECKey.generate_key("P-256", {"alg": ALGORITHM, "use": "sig"}, auto_kid=True)
        kid = key.kid
        assert kid
        return SigningKey(
            kid=kid,
            state="active",
            public=dict(key.as_dict(private=False)),
            sealed=self._seal.close(msgspec.json.encode(key.as_dict(private=True)), kid=kid),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _forget(self) -> None:
        self.public, self.active, self._stored, self._problem = {}, None, False, "no signing key yet"

    def _record(self, stored: Stored) -> None:
        self._forget()
        value = value_of(stored)
        if value is None:
            return
        self._stored = True
        try:
            ring = decode_ring(value)
            self.public = {key.kid: ECKey.import_key(cast(Any, key.public)) for key in ring.keys}
            # A set of exactly one: out of several Authlib would pick at random, from a bare key it takes no `kid`.
            (active,) = (key for key in ring.keys if key.state == "active")
            private = msgspec.json.decode(self._seal.open(active.sealed, kid=active.kid))
            self.active = KeySet([ECKey.import_key(private)])
            self._problem = None
        except CannotOpen:
            self._problem = (
                "the signing key was sealed under another cluster secret: set ARRIERO_AUTH_CLUSTER_SECRET to that one"
            )
        except (Malformed, JoseError, ValueError) as error:
            self._problem = f"the record of the signing keys cannot be read: {type(error).__name__}"
        if self._problem:
            log.error("keyring.unusable", problem=self._problem)
        else:
            log.info("keyring.loaded", active=active.kid, keys=len(self.public))
