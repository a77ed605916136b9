"""What comes in over NATS: records of jobs and of the catalog, heartbeats, slots that are free. Read, checked, and passed on."""

import time
from collections.abc import Callable
from typing import Any

import structlog

from libs.common.bus.buckets import value_of
from libs.common.bus.link import Message
from libs.common.bus.stored import Stored
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed
from libs.common.contracts.control import decode_free
from libs.common.contracts.headers import FACTS
from libs.common.contracts.jobs import decode_cancel_mark
from libs.common.contracts.nodes import decode_heartbeat
from libs.common.contracts.streams import MODELS
from libs.common.contracts.subjects import JobKey
from libs.common.folder import facts_of
from services.router.board import Board
from services.router.deeds import Deeds
from services.router.reclaimer import Reclaimer

log = structlog.get_logger()


class Intake:
    """`changed` is called when there may be something to do."""

    def __init__(self, board: Board, reclaimer: Reclaimer, deeds: Deeds, changed: Callable[[], None]) -> None:
        self._board = board
        self._reclaimer = reclaimer
        self._deeds = deeds
        self._changed = changed

    def on_record(self, stored: Stored) -> None:
        """A record of `new`, `active`, `done` or a cancel mark, headers only."""
        try:
            key, record = subjects.parse_record(stored.subject)
            if record == "cancel":
                text = stored.headers.get(FACTS)
                facts: Any = decode_cancel_mark(text) if text else None
            else:
                facts = facts_of(stored.subject, stored.headers)
        except (Malformed, ValueError) as error:
            log.error("record.unreadable", subject=stored.subject, error=str(error))
            return
        self._board.fold(key, record, facts, stored.sequence, stored.at_ms)

    def on_catalog_record(self, stored: Stored) -> None:
        catalog = self._board.scheduler.pricing.catalog
        try:
            catalog.fold(stored.subject.removeprefix(f"$KV.{MODELS}."), value_of(stored) or b"")
        except Malformed as error:
            log.error("catalog.unreadable", subject=stored.subject, error=str(error))
            return
        self._changed()

    def on_node_record(self, stored: Stored) -> None:
        if stored.data:
            self._on_heartbeat(stored.data, live=False)

    def on_heartbeat(self, message: Message) -> None:
        self._on_heartbeat(message.data, live=True)

    async def on_free(self, message: Message) -> None:
        try:
            free = decode_free(message.data)
        except Malformed as error:
            log.warning("free.malformed", error=str(error))
            return
        run = (JobKey(free.client, free.job), free.epoch)
        view = self._board.fleet.nodes.get(free.node)
        if view is not None and view.beat.boot == free.boot:
            view.release(run, free.changes)
        if free.given_back and (job := self._board.bound_as(run, free.boot)) is not None:
            self._deeds.do(job.key, self._reclaimer.requeue(job, free.epoch, free.fault, "given_back"))
        self._changed()

    def _on_heartbeat(self, data: bytes, *, live: bool) -> None:
        try:
            beat = decode_heartbeat(data)
        except Malformed as error:
            log.warning("heartbeat.malformed", error=str(error))
            return
        self._board.hear(beat, time.monotonic(), live=live)
