"""`/webhooks`: a client's own receivers (docs/webhooks.md)."""

from typing import Any

import msgspec

from libs.common.contracts.clients import Principal, Scope
from libs.common.contracts.faults import Code, failed
from libs.common.contracts.webhooks import EventType, Webhook
from services.gateway import operations
from services.gateway.http import Exchange
from services.gateway.job_bodies import decode_body
from services.gateway.job_service import JobService
from services.gateway.route import Reach, RouteSpec
from services.gateway.view import time_text
from services.gateway.webhooks.bodies import NewWebhook
from services.gateway.webhooks.urls import BadUrl, parse_url

MAX_BODY = 16 * 1024


_decode = msgspec.json.Decoder(NewWebhook)


class WebhooksRoutes:
    def __init__(self, service: JobService) -> None:
        self._service = service

    def routes(self) -> list[RouteSpec]:
        return [
            RouteSpec(
                "POST", "/webhooks", Scope.JOBS_WRITE, Reach.OWN_WEBHOOKS, self.create, operations.CREATE_WEBHOOK
            ),
            RouteSpec("GET", "/webhooks", Scope.JOBS_READ, Reach.OWN_WEBHOOKS, self.list, operations.LIST_WEBHOOKS),
            RouteSpec(
                "GET", "/webhooks/{webhook}", Scope.JOBS_READ, Reach.OWN_WEBHOOKS, self.get, operations.GET_WEBHOOK
            ),
            RouteSpec(
                "DELETE",
                "/webhooks/{webhook}",
                Scope.JOBS_WRITE,
                Reach.OWN_WEBHOOKS,
                self.delete,
                operations.DELETE_WEBHOOK,
            ),
            RouteSpec(
                "POST",
                "/webhooks/{webhook}/test",
                Scope.JOBS_WRITE,
                Reach.OWN_WEBHOOKS,
                self.test,
                operations.TEST_WEBHOOK,
            ),
        ]

    async def create(self, exchange: Exchange, principal: Principal) -> None:
        asked: NewWebhook = decode_body(_decode, await exchange.body(MAX_BODY))
        try:
            target = parse_url(asked.url, self._service.webhooks.networks)
        except BadUrl as error:
            raise failed(Code.INVALID_REQUEST, f"url: {error}", path="url") from error
        events = tuple(event for event in EventType if event in (asked.events or ()))
        made, secret = await self._service.webhooks.registry.create(
            principal.client, target.url, events, include_result=asked.include_result
        )
        exchange.target = made.id
        location = (b"location", f"/webhooks/{made.id}".encode())
        await exchange.respond_json(201, view(made) | {"secret": secret}, [location])

    async def list(self, exchange: Exchange, principal: Principal) -> None:
        found = await self._service.webhooks.registry.all(principal.client)
        await exchange.respond_json(200, {"webhooks": [view(webhook) for webhook in found]})

    async def get(self, exchange: Exchange, principal: Principal) -> None:
        found = await self._service.webhooks.registry.get(principal.client, exchange.params["webhook"])
        await exchange.respond_json(200, view(found))

    async def delete(self, exchange: Exchange, principal: Principal) -> None:
        webhook = exchange.params["webhook"]
        await self._service.webhooks.registry.delete(principal.client, webhook)
        exchange.target = webhook
        await exchange.respond_json(200, {"id": webhook, "deleted": True})

    async def test(self, exchange: Exchange, principal: Principal) -> None:
        found = await self._service.webhooks.registry.get(principal.client, exchange.params["webhook"])
        exchange.target = found.id
        outcome = await self._service.webhooks.delivering.test(principal, found)
        shown = {"id": found.id, "delivered": outcome.delivered, "status": outcome.status or None}
        await exchange.respond_json(200, shown | {"reason": outcome.reason or None})


def view(webhook: Webhook) -> dict[str, Any]:
    """As its owner sees it; never the secret."""
    return {
        "id": webhook.id,
        "url": webhook.url,
        "events": [str(event) for event in webhook.events or EventType],
        "include_result": webhook.include_result,
        "created_at": _time(webhook.created_at),
        "failing_since": _time(webhook.failing_since),
        "disabled_at": _time(webhook.disabled_at),
        "reason": webhook.reason or None,
    }


def _time(seconds: int | None) -> str | None:
    return time_text(None if seconds is None else seconds * 1000)
