"""What gateways ask the active router: where a job stands, and where one like it would go. Nothing is changed by it."""

import time
from collections.abc import Callable

from libs.common.bus.link import Message
from libs.common.contracts.codec import encode
from libs.common.contracts.control import PlaceAnswer, QuoteAnswer, decode_place_query, decode_quote
from libs.common.contracts.subjects import JobKey
from services.router import outlook
from services.router.asking import ask_of, waiting_of
from services.router.clock import ServerClock
from services.router.look import Look
from services.router.scheduler import Scheduler

PLACES_S = 0.25
FEW = 1000  # places of so many are reckoned at once when somebody new asks


class Enquiries:
    def __init__(self, scheduler: Scheduler, look: Callable[[], Look], clock: ServerClock) -> None:
        self._scheduler = scheduler
        self._look = look
        self._clock = clock
        self._places: dict[JobKey, outlook.Place] = {}
        self._places_until = 0.0

    async def place(self, message: Message) -> bytes:
        query = decode_place_query(message.data)
        key = JobKey(query.client, query.job)
        if (ask := self._scheduler.asks.get(key)) is None:
            return encode(PlaceAnswer())
        place = self._place_of(key)
        reason = outlook.why_not(self._look(), ask)
        return encode(PlaceAnswer(position=place.position, start_s=place.start_s, reason=reason))

    async def quote(self, message: Message) -> bytes:
        query = decode_quote(message.data)
        pricing = self._scheduler.pricing
        ask = ask_of(query.client, query.submission, pricing.rates)
        now_ms = self._clock.now_ms()
        waiting = waiting_of(
            JobKey(query.client, ""), query.submission, ask, submitted=0, created_ms=now_ms, deadline_ms=now_ms
        )
        found = outlook.prospect(self._look(), waiting, ask)
        return encode(
            QuoteAnswer(
                decision=found.decision,
                reason=found.reason,
                start_s=found.start_s,
                finish_s=found.finish_s,
                guessed=not pricing.has_seen(ask.model),
            )
        )

    def _place_of(self, key: JobKey) -> outlook.Place:
        """Reckoned for all at once, and not again for twenty times as long as that took: many ask."""
        now, queue = time.monotonic(), self._scheduler.queue
        if now >= self._places_until or (key not in self._places and len(queue) < FEW):
            self._places = outlook.places(queue, self._look(), self._scheduler.asks)
            self._places_until = time.monotonic() + max(PLACES_S, 20 * (time.monotonic() - now))
        return self._places.get(key) or outlook.Place(len(queue), None)
