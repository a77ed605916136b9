"""The webhooks of clients: the bucket `webhooks`, one record for each client, read from its leader when it is needed."""

import contextlib
import secrets
import time
from collections.abc import Callable

import msgspec
import structlog

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Conflict
from libs.common.contracts import subjects
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.contracts.streams import HOOKS, WEBHOOKS
from libs.common.contracts.webhooks import ClientWebhooks, EventType, Webhook, decode_client_webhooks
from libs.common.sealing import Seal
from services.gateway.webhooks.schedule import DISABLE_AFTER_S
from services.gateway.webhooks.signing import new_secret

log = structlog.get_logger()

MARKER_S = 60  # nobody follows this bucket
MAX_WEBHOOKS = 16  # of one client
TRIES = 10  # against others who write the same record at the same time


class WebhookRegistry:
    """What asks NATS raises BusError."""

    def __init__(self, bus: Bus, cluster_secret: bytes) -> None:
        self._bus = bus
        self._bucket = Bucket(bus, WEBHOOKS)
        self._seal = Seal(cluster_secret, "webhooks")

    async def all(self, client: str) -> tuple[Webhook, ...]:
        value, _ = await self._bucket.get(client)
        return decode_client_webhooks(value).webhooks if value else ()

    async def find(self, client: str, webhook: str) -> Webhook | None:
        return next((found for found in await self.all(client) if found.id == webhook), None)

    async def get(self, client: str, webhook: str) -> Webhook:
        """Raises Failed: NOT_FOUND."""
        found = await self.find(client, webhook)
        if found is None:
            raise _unknown()
        return found

    async def require(self, client: str, webhook: str) -> None:
        """For a job that names it. Raises Failed: INVALID_REQUEST, WRONG_STATE."""
        found = await self.find(client, webhook)
        if found is None:
            message = "there is no such webhook; POST /webhooks makes one, GET /webhooks lists them"
            raise failed(Code.INVALID_REQUEST, message, path="webhook")
        if found.disabled_at is not None:
            message = f"this webhook is disabled: {found.reason}; a test that succeeds enables it again"
            raise failed(Code.WRONG_STATE, message, path="webhook")

    async def create(
        self, client: str, url: str, events: tuple[EventType, ...], *, include_result: bool
    ) -> tuple[Webhook, str]:
        """(webhook, its secret). Raises Failed: WRONG_STATE when there are as many as may be, UNAVAILABLE."""
        identity, secret = f"wh_{secrets.token_hex(13)}", new_secret()
        made = Webhook(
            id=identity,
            url=url,
            secret=self._seal.close(secret.encode(), of=f"{client}.{identity}"),
            events=events,
            include_result=include_result,
            created_at=int(time.time()),
        )

        def add(before: tuple[Webhook, ...]) -> tuple[Webhook, ...]:
            if len(before) >= MAX_WEBHOOKS:
                message = f"a client has at most {MAX_WEBHOOKS} webhooks; delete one that is not needed any more"
                raise failed(Code.WRONG_STATE, message)
            return (*before, made)

        await self._change(client, add)
        return made, secret

    async def delete(self, client: str, webhook: str) -> None:
        """Raises Failed: NOT_FOUND, UNAVAILABLE."""

        def remove(before: tuple[Webhook, ...]) -> tuple[Webhook, ...]:
            after = tuple(one for one in before if one.id != webhook)
            if len(after) == len(before):
                raise _unknown()
            return after

        await self._change(client, remove)

    async def forget(self, client: str) -> None:
        """Everything of a client that was deleted. The record goes last: while it is there, this has to be done again."""
        value, revision = await self._bucket.get(client)
        if value is None:
            return
        for subject in subjects.hooks_of_client(client):
            await self._bus.api(f"STREAM.PURGE.{HOOKS}", {"filter": subject})
        with contextlib.suppress(Conflict):  # somebody changed it, or another gateway was first: there is a second look
            await self._bucket.delete(client, expected=revision, ttl_s=MARKER_S)
        log.info("webhooks.forgotten", client=client)

    def secret_of(self, client: str, webhook: Webhook) -> str:
        """Raises CannotOpen."""
        return self._seal.open(webhook.secret, of=f"{client}.{webhook.id}").decode()

    async def succeeded(self, client: str, webhook: Webhook, *, tested: bool = False) -> None:
        """Writes only what changes something. A test also enables."""
        if webhook.failing_since is not None or (tested and webhook.disabled_at is not None):
            await self._update(client, webhook.id, lambda one: _well(one, tested=tested))

    async def has_failed(self, client: str, webhook: Webhook, reason: str, *, gone: bool = False) -> None:
        """`gone`: the receiver wants nothing any more."""
        now = int(time.time())
        if failing(webhook, now, reason, gone=gone) != webhook:
            await self._update(client, webhook.id, lambda one: failing(one, now, reason, gone=gone))

    async def _update(self, client: str, webhook: str, change: Callable[[Webhook], Webhook]) -> None:
        def apply(before: tuple[Webhook, ...]) -> tuple[Webhook, ...]:
            return tuple(change(one) if one.id == webhook else one for one in before)

        await self._change(client, apply)

    async def _change(self, client: str, change: Callable[[tuple[Webhook, ...]], tuple[Webhook, ...]]) -> None:
        for _ in range(TRIES):
            value, revision = await self._bucket.get(client)
            before = decode_client_webhooks(value).webhooks if value else ()
            after = change(before)
            if after == before:
                return
            try:
                await self._bucket.put(client, encode(ClientWebhooks(webhooks=after)), expected=revision)
                return
            except Conflict:
                continue
        raise failed(Code.UNAVAILABLE, "others change the same webhooks all the time; try again", retry_after_s=1)


def failing(webhook: Webhook, now: int, reason: str, *, gone: bool = False) -> Webhook:
    """Pure. Disabled when it has been failing for DISABLE_AFTER_S, or at once when it is gone."""
    if webhook.disabled_at is not None:
        return webhook
    if webhook.failing_since is None:
        webhook = msgspec.structs.replace(webhook, failing_since=now, reason=reason)
    assert webhook.failing_since is not None
    if gone or now - webhook.failing_since >= DISABLE_AFTER_S:
        days = round(DISABLE_AFTER_S / 86400)
        why = (
            "the receiver answered 410 Gone"
            if gone
            else f"every delivery of {days} days failed, the last one: {reason}"
        )
        return msgspec.structs.replace(webhook, disabled_at=now, reason=why)
    return webhook


def _well(webhook: Webhook, *, tested: bool) -> Webhook:
    if webhook.disabled_at is not None and not tested:
        return webhook
    return msgspec.structs.replace(webhook, failing_since=None, disabled_at=None, reason="")


def _unknown() -> Failed:
    return failed(Code.NOT_FOUND, "there is no such webhook; GET /webhooks lists those there are")
