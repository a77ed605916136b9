"""Of an erased job nobody is told more than its id and how it ended: an event that waits is replaced by one that says that."""

from libs.common.bus.connection import Bus
from libs.common.contracts import subjects
from libs.common.contracts.codec import encode
from libs.common.contracts.headers import FACTS, TTL
from libs.common.contracts.jobs import Completion
from libs.common.contracts.streams import HOOKS
from libs.common.contracts.subjects import JobKey
from libs.common.contracts.webhooks import HookEvent
from services.gateway.webhooks.events import bare_body, message_id
from services.gateway.webhooks.schedule import EVENT_TTL_S


async def make_bare(bus: Bus, key: JobKey, completion: Completion) -> None:
    """If an event of this job waits. It keeps its id and gets a day of its own. Raises BusError.

    One that is delivered in this very moment comes once more, as any may.
    """
    webhook = completion.job.webhook
    if not webhook:
        return
    subject = subjects.hook_send(key, completion.submitted)
    found = await bus.api(f"STREAM.INFO.{HOOKS}", {"subjects_filter": subject})
    if not found["state"].get("subjects"):
        return
    facts = HookEvent(id=message_id(key.job, completion.submitted), webhook=webhook)
    headers = {FACTS: encode(facts).decode(), TTL: str(EVENT_TTL_S)}
    await bus.append(subject, bare_body(key.job, completion), headers=headers)
