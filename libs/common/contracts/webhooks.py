"""Webhooks of clients, and what the stream HOOKS holds of their deliveries (ADR 0015).

Bucket `webhooks`: one record for each client under its id, so that one compare-and-set bounds their number.

| subject                                | header (`Arriero-Facts`) | body                                    |
|----------------------------------------|--------------------------|-----------------------------------------|
| `hooks.wait.<client>.<job>`            | none                     | empty: somebody has to look at this job |
| `hooks.send.<client>.<job>.<submitted>` | HookEvent               | the exact bytes that the receiver gets  |
"""

from enum import StrEnum

from libs.common.contracts.codec import Contract, Decoder
from libs.common.states import JobState

WAITING, SENDING = "waiting", "sending"  # the durable consumers of HOOKS, shared by all gateways


class EventType(StrEnum):
    """As the receiver sees it."""

    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"
    EXPIRED = "job.expired"


TEST_EVENT = "webhook.test"  # sent on request, never stored


def event_of(state: JobState) -> EventType:
    """Raises ValueError for a state that is not final."""
    return EventType(f"job.{state}")


class Webhook(Contract, frozen=True, kw_only=True):
    """`secret` is sealed under the cluster's secret, bound to client and id: each delivery is signed with it.
    Times are seconds since the epoch. `failing_since`: of the first failure since the last success, with `reason`."""

    id: str
    url: str
    secret: str
    events: tuple[EventType, ...] = ()  # empty: all
    include_result: bool = False
    created_at: int = 0
    failing_since: int | None = None
    disabled_at: int | None = None  # nothing is sent any more, until a test succeeds
    reason: str = ""  # of the failures, or of the end: a few words, never what the receiver said

    def wants(self, event: EventType) -> bool:
        return not self.events or event in self.events


class ClientWebhooks(Contract, frozen=True, kw_only=True):
    webhooks: tuple[Webhook, ...] = ()


class HookEvent(Contract, frozen=True, kw_only=True):
    """One event on its way; `id` stays the same for every attempt."""

    id: str
    webhook: str


decode_client_webhooks = Decoder(ClientWebhooks)
decode_hook_event = Decoder(HookEvent)
