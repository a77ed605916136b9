"""Webhooks: clients register a receiver, a job names it, and its end is told there (docs/webhooks.md, ADR 0015)."""

from typing import NamedTuple

from services.gateway.webhooks.addresses import Network
from services.gateway.webhooks.delivering import Delivering
from services.gateway.webhooks.registry import WebhookRegistry
from services.gateway.webhooks.sender import Sender
from services.gateway.webhooks.waiting import Waiting

__all__ = ["Delivering", "Sender", "Waiting", "WebhookRegistry", "Webhooks"]


class Webhooks(NamedTuple):
    """What requests about them need. `networks`: those beside the public Internet that may be reached."""

    registry: WebhookRegistry
    delivering: Delivering
    networks: tuple[Network, ...] = ()
