"""Events on their way: each attempt is a message of HOOKS in somebody's hands; what fails is given back for later."""

import contextlib
import random
import time
from urllib.parse import urlsplit

import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.puller import Puller, Work
from libs.common.contracts import subjects
from libs.common.contracts.clients import Principal
from libs.common.contracts.codec import Malformed
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.contracts.headers import FACTS
from libs.common.contracts.streams import HOOKS
from libs.common.contracts.webhooks import SENDING, Webhook, decode_hook_event
from libs.common.sealing import CannotOpen
from services.gateway import metrics
from services.gateway.credentials import Credentials
from services.gateway.webhooks.events import body_of_test
from services.gateway.webhooks.registry import WebhookRegistry
from services.gateway.webhooks.schedule import JITTER, Step, admit, next_attempt
from services.gateway.webhooks.sender import Outcome, Sender
from services.gateway.webhooks.signing import new_message_id
from services.gateway.webhooks.under_way import Busy, UnderWay

log = structlog.get_logger()

AT_ONCE = 100  # deliveries of all clients
NOT_NOW_S = 5.0  # when it is not known whether the client still counts
CANNOT_OPEN = "its secret cannot be read: make it anew"


class Delivering:
    def __init__(self, bus: Bus, registry: WebhookRegistry, credentials: Credentials, sender: Sender) -> None:
        self._registry = registry
        self._credentials = credentials
        self._sender = sender
        self._under_way = UnderWay()
        self.puller = Puller(bus, HOOKS, SENDING, subjects.HOOKS_SENDING, self._deliver, limit=AT_ONCE)

    async def test(self, principal: Principal, webhook: Webhook) -> Outcome:
        """One event that says nothing, now; a success enables the webhook. Raises Failed: OVERLOADED, and BusError."""
        now_ms = int(time.time() * 1000)
        try:
            with self._under_way.one(principal.client):
                outcome = await self._send(principal.client, webhook, new_message_id(), body_of_test(webhook, now_ms))
        except Busy as busy:
            message = "as many deliveries of this client are under way as may be; try again"
            raise failed(Code.OVERLOADED, message, retry_after_s=busy.after) from None
        if outcome.delivered:
            await self._registry.succeeded(principal.client, webhook, tested=True)
        return outcome

    async def _deliver(self, work: Work) -> None:
        client, job = subjects.parse_hook(work.subject)
        try:
            event = decode_hook_event(work.headers.get(FACTS, ""))
        except Malformed as error:
            log.error("webhook.event_unreadable", job_id=job, error=str(error))
            await self.puller.done(work.reply)
            return
        elapsed = max(0.0, time.time() - work.at_ms / 1000)
        if not self._credentials.fresh:
            await self.puller.later(work.reply, NOT_NOW_S)
            return
        verdict = admit(self._credentials.client(client), deleted=self._credentials.deleted(client), elapsed=elapsed)
        if verdict.step is Step.WAIT:
            await self.puller.later(work.reply, verdict.delay * (1 + JITTER * random.random()))
            return
        if verdict.step is Step.DROP:
            await self._drop(work, job, verdict.reason)
            return
        webhook = await self._registry.find(client, event.webhook)
        if webhook is None or webhook.disabled_at is not None:
            await self._drop(work, job, "the webhook is gone or disabled")
            return
        try:
            with self._under_way.one(client):
                outcome = await self._send(client, webhook, event.id, work.data)
        except Busy as busy:
            await self.puller.later(work.reply, busy.after * (1 + random.random()))
            return
        if outcome.delivered:
            await self.puller.done(work.reply)
            with contextlib.suppress(Failed):  # the next success says it again
                await self._registry.succeeded(client, webhook)
            return
        if not outcome.gone:
            delay = next_attempt(max(0.0, time.time() - work.at_ms / 1000), random.random(), outcome.retry_after)
            if delay is None:
                metrics.webhooks_given_up.inc()
                await self._drop(work, job, "a day of attempts is over")
            else:
                await self.puller.later(work.reply, delay)
        else:
            await self._drop(work, job, outcome.reason)
        with contextlib.suppress(Failed):  # the next failure says it again
            await self._registry.has_failed(client, webhook, outcome.reason, gone=outcome.gone)

    async def _send(self, client: str, webhook: Webhook, message: str, body: bytes) -> Outcome:
        began = time.monotonic()
        try:
            outcome = await self._sender.send(webhook.url, self._registry.secret_of(client, webhook), message, body)
        except CannotOpen:
            outcome = Outcome(0, CANNOT_OPEN)
        result = "delivered" if outcome.delivered else "refused" if outcome.status else "unreachable"
        metrics.webhook_attempts.labels(result).inc()
        metrics.webhook_seconds.observe(time.monotonic() - began)
        log.info(
            "webhook.attempt", client=client, webhook=webhook.id, message=message, host=urlsplit(webhook.url).hostname,
            status=outcome.status, reason=outcome.reason,
        )  # fmt: skip
        return outcome

    async def _drop(self, work: Work, job: str, reason: str) -> None:
        log.info("webhook.dropped", job_id=job, reason=reason)
        await self.puller.done(work.reply)
