"""Streams and buckets: made once by `arriero nats init`, compared by every service at its start. Never changed, never deleted."""

from collections.abc import Container
from typing import Any

import msgspec

from libs.common.bus.connection import Bus
from libs.common.bus.failures import STREAM_NOT_FOUND, Refused
from libs.common.contracts.permissions import WHO_AM_I, Permissions, missing, permissions, user_named
from libs.common.contracts.streams import GIB, MIB, STREAMS, Stream, differences

MAX_JOBS_BYTES = 50 * GIB  # DESIGN §3; less on a small disk
MIN_JOBS_BYTES = 16 * MIB  # 0 would mean "without limit" to the server
SHARE_OF_DISK = 4


async def create_missing(bus: Bus, *, replicas: int = 1, free_disk: int | None = None) -> list[str]:
    """Creates what is not there; the names of what was created. Twice does nothing. Raises BusError.

    `free_disk`: bytes free where the server stores, when the caller knows; else 16 GiB are assumed.
    """
    share = (free_disk if free_disk is not None else 16 * GIB) // SHARE_OF_DISK
    limit = max(MIN_JOBS_BYTES, min(MAX_JOBS_BYTES, share))
    created = []
    for stream in STREAMS:
        if await _config(bus, stream) is None:
            wanted = stream.config(replicas=replicas, max_bytes=limit)
            if stream.max_bytes is not None:  # all of them together stay below JOBS, so a full disk is far away
                wanted["max_bytes"] = min(stream.max_bytes, limit // 8)
            await bus.api(f"STREAM.CREATE.{stream.name}", wanted, timeout=10)
            created.append(stream.name)
    return created


async def drift(bus: Bus, names: Container[str] | None = None) -> list[str]:
    """What differs between the declaration and the server, one sentence each; of all streams, or of those. Raises BusError."""
    said = []
    for stream in STREAMS:
        if names is not None and stream.name not in names:
            continue
        found = await _config(bus, stream)
        if found is None:
            said.append(f"stream {stream.name} does not exist: run `arriero nats init`")
            continue
        wanted = stream.config(replicas=1, max_bytes=1)
        said += [f"stream {stream.name}: {difference}" for difference in differences(wanted, found)]
        if stream.name == "JOBS":
            bus.replicated = found.get("num_replicas", 1) > 1
    return said


async def _config(bus: Bus, stream: Stream) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = (await bus.api(f"STREAM.INFO.{stream.name}"))["config"]
    except Refused as error:
        if error.code == STREAM_NOT_FOUND:
            return None
        raise
    return found


async def own_permissions(bus: Bus) -> Permissions:
    """What NATS allows this connection. Raises BusError."""
    answer = msgspec.json.decode(await bus.request(WHO_AM_I), type=_UserInfo)
    found = answer.data.permissions
    if found is None:
        return Permissions(None, None)
    return Permissions(found.publish.entries(), found.subscribe.entries(), tuple(found.publish.deny))


async def lacking(bus: Bus) -> list[str]:
    """What this service's NATS user would have to be allowed, as one sentence, or nothing. Raises BusError."""
    user = user_named(bus.user)
    if user is None:
        return []
    lost = missing(permissions(user), await own_permissions(bus))
    if not lost:
        return []
    remedy = "write the users anew with `arriero nats users`, and reload nats-server"
    return [f"the NATS user {user.name} may not {', '.join(lost)}: {remedy}"]


class _Rule(msgspec.Struct):
    allow: list[str] = []
    deny: list[str] = []

    def entries(self) -> tuple[str, ...] | None:
        return tuple(self.allow) or None  # no list of what is allowed: everything is


class _Rules(msgspec.Struct):
    publish: _Rule = msgspec.field(default_factory=_Rule)
    subscribe: _Rule = msgspec.field(default_factory=_Rule)


class _User(msgspec.Struct):
    permissions: _Rules | None = None


class _UserInfo(msgspec.Struct):
    data: _User
