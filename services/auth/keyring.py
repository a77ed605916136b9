"""The signing keys, shared by all replicas of the service through one record of the bucket `signing`.

One record for all keys, so that every change is one compare-and-set and replicas never disagree about which key is active.
What is due is decided in `rotation`; every replica looks twice a second.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet

from libs.common.bus.buckets import Bucket, value_of
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError, Conflict
from libs.common.bus.follower import Follower
from libs.common.bus.stored import Stored
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.faults import Code, failed
from libs.common.contracts.revocations import Revocation, signing_key_record
from libs.common.contracts.streams import REVOKED, SIGNING, key_subject
from libs.common.credentials.tokens import ALGORITHM
from libs.common.sealing import CannotOpen, Seal
from services.auth import metrics
from services.auth.rotation import Ring, Schedule, SigningKey, decode_ring, step

log = structlog.get_logger()

RECORD = "keyring"
LOOK_AGAIN_S = 0.5
SEEN_WITHIN_S = 2.0

# That a key was withdrawn is also the order to take it out of the ring. It outlives the tokens by far, so that a ring whose
# replicas were all away meanwhile does not sign with it again.
WITHDRAWN_S = 30 * 86400

DEFAULT = Schedule()


class Keyring:
    """What the record holds now. `run` follows it, and does what is due: the first key, the next one, the end of old ones."""

    def __init__(
        self,
        bus: Bus,
        cluster_secret: bytes,
        schedule: Schedule = DEFAULT,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.public: dict[str, ECKey] = {}  # for tokens
        self.witnesses: dict[str, ECKey] = {}  # for the audit trail: also those of the past
        self.active: KeySet | None = None
        self.ring: Ring | None = None
        self.schedule = schedule
        self._clock = clock
        self._problem: str | None = "no signing key yet"
        self._withdrawn: set[str] = set()
        self._bucket = Bucket(bus, SIGNING)
        self._revoked = Bucket(bus, REVOKED)
        self._seal = Seal(cluster_secret, "signing-keys")
        self._spare = self._generate()
        self._follower = Follower(
            bus, f"KV_{SIGNING}", [key_subject(SIGNING, RECORD)], self._record, on_reset=self._forget
        )
        self._withdrawals = Follower(
            bus,
            f"KV_{REVOKED}",
            [key_subject(REVOKED, "key.*")],
            self._withdraw,
            on_reset=self._withdrawn.clear,
        )

    def check(self) -> str | None:
        return self._problem

    def jwks(self) -> dict[str, Any]:
        """RFC 7517 §5; the public parts of all keys, whatever their state."""
        return {"keys": [key.as_dict(private=False) for key in self.public.values()]}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follower.run())
            tasks.create_task(self._withdrawals.run())
            tasks.create_task(self._keep_turning())

    async def rotate(self) -> Ring:
        """The active key is replaced as soon as its successor has been published for long enough. Raises Failed, BusError."""
        return await self._change(lambda ring: msgspec.structs.replace(ring, asked=True), ())

    async def withdraw(self) -> tuple[Ring, tuple[str, ...]]:
        """All keys, and with them every token, end at once; a new one signs. Returns the ring, and who was withdrawn.
        Raises Failed, BusError; whatever is written by then is carried through by `run`."""
        found, _ = await self._bucket.get(RECORD)
        kids = tuple(key.kid for key in decode_ring(found).keys) if found is not None else ()
        for kid in kids:
            revocation = Revocation(at=int(self._clock()), reason="withdrawn by an administrator")
            await self._revoked.put(signing_key_record(kid), encode(revocation), ttl_s=WITHDRAWN_S)
        log.warning("keyring.withdrawn", kids=kids)
        return await self._change(lambda ring: ring, kids), kids

    async def _change(self, change: Callable[[Ring], Ring], withdrawn: Collection[str]) -> Ring:
        while True:
            found, revision = await self._bucket.get(RECORD)
            if found is None or self._problem is not None:
                raise failed(Code.UNAVAILABLE, f"Not ready: {self._problem or 'no signing key yet'}.", retry_after_s=1)
            before = decode_ring(found)
            asked = change(before)
            taken = step(asked, self._clock(), self.schedule, self._spare, {*self._withdrawn, *withdrawn})
            after = taken.ring if taken else asked
            if after == before:
                return before
            try:
                await self._write(after, revision, taken.reasons if taken else ())
            except Conflict:
                continue
            return after

    async def _keep_turning(self) -> None:
        while True:
            await self._follower.caught_up.wait()
            await self._withdrawals.caught_up.wait()
            if self._problem is None or self.ring is None or self.ring.of("active") is None:
                try:
                    await self._turn()
                except (BusError, Malformed) as error:
                    log.warning("keyring.not_turned", error=str(error))
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _turn(self) -> None:
        """Nothing is read or written until something is due, as far as is known here."""
        now = self._clock()
        if step(self.ring, now, self.schedule, self._spare, self._withdrawn) is None:
            return
        found, revision = await self._bucket.get(RECORD)
        ring = decode_ring(found) if found is not None else None
        taken = step(ring, now, self.schedule, self._spare, self._withdrawn)
        if taken is not None:
            with suppress(Conflict):  # another replica was first: what it wrote comes by the follower
                await self._write(taken.ring, revision, taken.reasons)

    async def _write(self, ring: Ring, revision: int, reasons: tuple[str, ...]) -> None:
        """Comes back after this replica knows it. Raises Conflict, BusError."""
        revision = await self._bucket.put(RECORD, encode(ring), expected=revision)
        if any(key.kid == self._spare.kid for key in ring.keys):
            self._spare = self._generate()
        for reason in reasons:
            log.info("keyring.turned", why=reason)
        metrics.signing_key_changes.inc()
        await self._follower.reached(revision, within=SEEN_WITHIN_S)

    def _generate(self) -> SigningKey:
        key = ECKey.generate_key("P-256", {"alg": ALGORITHM, "use": "sig"}, auto_kid=True)
        kid = key.kid
        assert kid
        return SigningKey(
            kid=kid,
            state="next",
            public=dict(key.as_dict(private=False)),
            sealed=self._seal.close(msgspec.json.encode(key.as_dict(private=True)), of=kid),
            created_at=datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds"),
        )

    def _forget(self) -> None:
        self.public, self.witnesses, self.active, self.ring = {}, {}, None, None
        self._problem = "no signing key yet"

    def _withdraw(self, stored: Stored) -> None:
        if value_of(stored) is not None:
            self._withdrawn.add(stored.subject.rpartition(".")[2])

    def _record(self, stored: Stored) -> None:
        self._forget()
        self._read(value_of(stored))

    def _read(self, value: bytes | None) -> None:
        if value is None:
            return
        try:
            self.ring = decode_ring(value)
            self.public = {key.kid: ECKey.import_key(cast(Any, key.public)) for key in self.ring.keys}
            past = {key.kid: ECKey.import_key(cast(Any, key.public)) for key in self.ring.past}
            self.witnesses = {**past, **self.public}
            # A set of exactly one: out of several Authlib would pick at random, from a bare key it takes no `kid`.
            (active,) = (key for key in self.ring.keys if key.state == "active")
            private = msgspec.json.decode(self._seal.open(active.sealed, of=active.kid))
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
