"""From the end of a job to an event that is to be sent: `hooks.wait.…` becomes `hooks.send.…`, once for each life of a job.

What is announced is only that somebody has to look; the job's own record says which webhook hears of it. Whoever gets the
announcement looks, gives it back for later, and meanwhile listens for hints of that client; a hint brings the look forward.
"""

import asyncio
import random
import time
from collections import Counter
from typing import NamedTuple

import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError, Conflict
from libs.common.bus.link import Message, Subscription
from libs.common.bus.puller import Puller, Work
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.headers import EXPECTED_SEQUENCE, FACTS, MSG_ID, TTL
from libs.common.contracts.jobs import Completion, Submission, decode_hint
from libs.common.contracts.streams import HOOKS
from libs.common.contracts.subjects import JobKey
from libs.common.contracts.webhooks import WAITING, HookEvent, event_of
from libs.common.folder import ttl_s
from libs.common.journal import Journal
from services.gateway.webhooks.erasing import make_bare
from services.gateway.webhooks.events import body_of, message_id, wants_log
from services.gateway.webhooks.registry import WebhookRegistry
from services.gateway.webhooks.schedule import EVENT_TTL_S, JITTER, LATEST_S, Step, judge

log = structlog.get_logger()

LOOKS = 64  # at once
MAX_EXPECTED = 10_000  # jobs whose hints are listened for; the others are looked at as time goes by
SPARE_S = 120  # that an announcement outlives its job's records


async def announce(bus: Bus, key: JobKey, submission: Submission) -> None:
    """Before the job is written, so that no job can be there without it. Raises BusError."""
    ttl = ttl_s(submission, created_ms=0, now_ms=0) + SPARE_S
    await bus.append(subjects.hook_wait(key), b"", headers={TTL: str(ttl)})


class _Expected(NamedTuple):
    reply: str
    until: float  # monotonic


class Waiting:
    def __init__(self, bus: Bus, registry: WebhookRegistry) -> None:
        self._bus = bus
        self._journal = Journal(bus)
        self._registry = registry
        self._expected: dict[JobKey, _Expected] = {}
        self._clients: Counter[str] = Counter()
        self._hearing: dict[str, Subscription] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self.puller = Puller(bus, HOOKS, WAITING, subjects.HOOKS_WAITING, self._look, limit=LOOKS)

    async def run(self) -> None:
        """Runs until stopped or cancelled."""
        tidying = asyncio.create_task(self._tidy())
        try:
            await self.puller.run()
        finally:
            tidying.cancel()
            for task in self._settling:
                task.cancel()

    async def _look(self, work: Work) -> None:
        key = subjects.parse_hook(work.subject)
        await self._expect(key, work.reply)  # before the look: what ends after it is heard
        try:
            entry = await self._journal.newest(key)
        except Malformed as error:
            log.error("webhook.record_unreadable", job_id=key.job, error=str(error))
            await self._drop(key, work.reply)
            return
        now_ms = int(time.time() * 1000)
        verdict = judge(entry, age=(now_ms - work.at_ms) / 1000, now_ms=now_ms)
        if verdict.step is Step.WAIT:
            await self.puller.later(work.reply, verdict.delay * (1 + JITTER * random.random()))
            return
        if verdict.step is Step.SEND:
            await self._settle(key)
        else:
            log.info("webhook.dropped", job_id=key.job, client=key.client, reason=verdict.reason)
        await self._drop(key, work.reply)

    async def _settle(self, key: JobKey) -> bool:
        """Stores the event of a job that has ended; false: it has not. Twice stores it once. Raises BusError."""
        entry = await self._journal.newest(key)
        completion = entry.facts if entry else None
        if entry is None or not isinstance(completion, Completion):
            return False
        event = event_of(completion.state)
        webhook = await self._registry.find(key.client, completion.job.webhook)
        if webhook is None or webhook.disabled_at is not None or not webhook.wants(event):
            return True
        body_log = await self._journal.body(key, entry) if wants_log(webhook, completion) else None
        message = message_id(key.job, completion.submitted)
        facts = HookEvent(id=message, webhook=webhook.id)
        headers = {
            FACTS: encode(facts).decode(),
            TTL: str(EVENT_TTL_S),
            EXPECTED_SEQUENCE: "0",
            MSG_ID: message,  # also when the first was sent and gone already: two gateways hear the same hint
        }
        body = body_of(key, entry, webhook, body_log)
        try:
            await self._bus.append(subjects.hook_send(key, completion.submitted), body, headers=headers)
        except Conflict:  # it waits there already
            bare = False
        else:
            bare = completion.erased
        if not bare:  # was it erased before that was stored, and so without who erased it seeing it?
            entry = await self._journal.newest(key)
            if entry and isinstance(entry.facts, Completion) and entry.facts.erased:
                await make_bare(self._bus, key, entry.facts)
        return True

    # -- hints ---------------------------------------------------------------------------------------------------------

    async def _expect(self, key: JobKey, reply: str) -> None:
        if key not in self._expected:
            if len(self._expected) >= MAX_EXPECTED:
                return
            self._clients[key.client] += 1
        self._expected[key] = _Expected(reply, time.monotonic() + 2 * LATEST_S)
        if key.client not in self._hearing:
            self._hearing[key.client] = await self._bus.subscribe(subjects.hints_of_client(key.client), self._hear)

    def _hear(self, message: Message) -> None:
        try:
            key = subjects.parse_hint(message.subject)
            expected = self._expected.get(key)
            if expected is None or not decode_hint(message.data).state.final:
                return
        except (ValueError, Malformed):
            return
        task = asyncio.create_task(self._hinted(key, expected.reply))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _hinted(self, key: JobKey, reply: str) -> None:
        """What goes wrong here is put right by the next look."""
        try:
            if await self._settle(key):
                await self._drop(key, reply)
        except (BusError, Malformed) as error:
            log.info("webhook.hint_without_effect", job_id=key.job, error=str(error))
        except Exception:
            log.exception("webhook.settling_failed", job_id=key.job)

    async def _drop(self, key: JobKey, reply: str) -> None:
        await self.puller.done(reply)
        await self._forget(key)

    async def _forget(self, key: JobKey) -> None:
        if self._expected.pop(key, None) is None:
            return
        self._clients[key.client] -= 1
        if not self._clients[key.client]:
            del self._clients[key.client]
            if subscription := self._hearing.pop(key.client, None):
                await subscription.stop()

    async def _tidy(self) -> None:
        """Others may have got the announcement since."""
        while True:
            await asyncio.sleep(LATEST_S / 5)
            now = time.monotonic()
            for key in [key for key, expected in self._expected.items() if expected.until < now]:
                await self._forget(key)
