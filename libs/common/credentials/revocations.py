"""Tokens and signing keys that no longer count before their time, kept as the bucket `revoked` has them."""

import time
from collections.abc import Callable
from typing import NoReturn

import structlog

from libs.common.bus.buckets import value_of
from libs.common.bus.connection import Bus
from libs.common.bus.follower import Follower
from libs.common.bus.stored import Stored
from libs.common.contracts.codec import Malformed
from libs.common.contracts.revocations import Revocation, decode_revocation
from libs.common.contracts.streams import REVOKED, key_subject
from libs.common.credentials.tokens import COUNTS_FOR_S

log = structlog.get_logger()


class Revocations:
    """`tokens` by jti, `keys` by kid. Believe them only while `fresh`.

    `on_change` hears the client whose token it was, or None: anybody's, because a key was withdrawn.
    """

    def __init__(self, bus: Bus, *, on_change: Callable[[str | None], None] = lambda client: None) -> None:
        self.tokens: dict[str, Revocation] = {}
        self.keys: dict[str, Revocation] = {}
        self._on_change = on_change
        self._follower = Follower(
            bus, f"KV_{REVOKED}", [key_subject(REVOKED, ">")], self._record, on_reset=self._forget
        )

    @property
    def fresh(self) -> bool:
        return self._follower.fresh

    def check(self) -> str | None:
        return None if self.fresh else "revocations are not up to date: the bucket is not being heard from"

    async def run(self) -> NoReturn:
        await self._follower.run()
        raise AssertionError("a follower does not end")

    async def seen(self, revision: int, *, within: float) -> bool:
        """Whether all records up to that revision have arrived here, waiting for them `within` seconds at most."""
        return await self._follower.reached(revision, within=within)

    def _forget(self) -> None:
        self.tokens.clear()
        self.keys.clear()

    def _record(self, stored: Stored) -> None:
        value = value_of(stored)
        match stored.subject.split(".")[2:]:
            case ["token", name]:
                kept = self.tokens
            case ["key", name]:
                kept = self.keys
            case _:
                return  # the bucket holds other notes of auth, too
        if value is None:
            kept.pop(name, None)
            return
        try:
            revocation = decode_revocation(value)
        except Malformed as error:
            # Whatever else it says: somebody wrote that this does not count.
            log.error("revocations.record_unreadable", key=name, error=str(error))
            revocation = Revocation(at=stored.at_ms // 1000)
        kept[name] = revocation
        self._prune()
        self._on_change(revocation.client or None)

    def _prune(self) -> None:
        """Records expire at the server without a word. They come in the order of their times, nearly. After so long no token
        that they are about counts anyway."""
        limit = time.time() - COUNTS_FOR_S
        for kept in (self.tokens, self.keys):
            while kept and next(iter(kept.values())).at < limit:
                del kept[next(iter(kept))]
