"""Buckets: keys with a value, a revision, and (by the writer's wish) a life time. P4: raw publishes, leader reads."""

from libs.common.bus.connection import Bus
from libs.common.bus.link import Headers
from libs.common.bus.stored import Stored
from libs.common.contracts.headers import EXPECTED_SEQUENCE, EXPECTED_SUBJECT, KV_OPERATION, MARKER_REASON, TTL
from libs.common.contracts.streams import key_subject


def value_of(stored: Stored) -> bytes | None:
    """The value of a bucket's record; None for a delete, a purge, or a server's expiry marker."""
    if KV_OPERATION in stored.headers or MARKER_REASON in stored.headers:
        return None
    return stored.data


class Bucket:
    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self.name = name
        self.stream = f"KV_{name}"

    async def get(self, key: str) -> tuple[bytes | None, int]:
        """(value, revision), from the leader; (None, revision to compare and set with) when there is no value."""
        stored = await self._bus.last(self.stream, key_subject(self.name, key))
        return (value_of(stored), stored.sequence) if stored else (None, 0)

    async def put(
        self, key: str, value: bytes, *, expected: int | None = None, among: str | None = None, ttl_s: int | None = None
    ) -> int:
        """The new revision. Raises Conflict when `expected` is given and not the key's revision, and all that append does.
        With `among`, a pattern that `key` fits, `expected` is the newest revision of all keys that fit it."""
        return await self._write(key, value, {}, expected, among, ttl_s)

    async def delete(
        self, key: str, *, expected: int | None = None, among: str | None = None, ttl_s: int | None = None
    ) -> int:
        """The revision of the marker, which stays for `ttl_s`; the rest as in `put`."""
        return await self._write(key, b"", {KV_OPERATION: "DEL"}, expected, among, ttl_s)

    async def _write(
        self, key: str, value: bytes, headers: Headers, expected: int | None, among: str | None, ttl_s: int | None
    ) -> int:
        if expected is not None:
            headers[EXPECTED_SEQUENCE] = str(expected)
        if among is not None:
            headers[EXPECTED_SUBJECT] = key_subject(self.name, among)
        if ttl_s is not None:
            headers[TTL] = str(max(1, ttl_s))
        return (await self._bus.append(key_subject(self.name, key), value, headers=headers)).sequence

    def key_of(self, subject: str) -> str:
        return subject.removeprefix(f"$KV.{self.name}.")
