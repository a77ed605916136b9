"""What `POST /webhooks` takes. Pure."""

from typing import Annotated

import msgspec

from libs.common.contracts.webhooks import EventType
from services.gateway.webhooks.urls import MAX_URL


class NewWebhook(msgspec.Struct, forbid_unknown_fields=True):
    url: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_URL)]
    events: Annotated[list[EventType], msgspec.Meta(min_length=1, max_length=len(EventType))] | None = None
    include_result: bool = False
