"""One reader of one job: live chunks from the workers, what was missed from the gateways, as one ordered stream.

Gateways watch along while the answer grows: what the successor of a dead worker goes on from is what was stored, about once a
second, and what gateways have seen since (DESIGN §4). A service of its own cannot answer the router; they do it for it.
"""

import asyncio
import contextlib
import math
import random
import secrets
import time
from collections.abc import AsyncGenerator, Iterator

from libs.client.calls import PASSING, Calls
from libs.client.errors import ArrieroError, NotConnected, PositionLost, ending_of
from libs.client.events import End, Reset, StreamEvent, event_of
from libs.client.place import Ask, Place
from libs.common.bus.link import Message, Subscription
from libs.common.chunk_queue import Chunk, ChunkQueue
from libs.common.contracts import subjects
from libs.common.contracts.api import Piece, decode_piece
from libs.common.contracts.codec import Malformed
from libs.common.contracts.events import Position, parse_frame
from libs.common.contracts.faults import Code
from libs.common.contracts.jobs import decode_hint
from libs.common.contracts.subjects import JobKey
from libs.common.states import JobState

SILENCE_S = 3.0  # a live attempt says something every second
# While a job waits nobody speaks; a lost hint costs this much at most. The gateways count a stream for 30 s after a read.
QUEUED_LOOK_S = (10.0, 20.0)
SOON_S = 0.5
WATCH_S = 10.0  # a gateway watches along so long,
LEAVE_S = 1.0
RENEW_S = 5.0  # and the next, perhaps another one, begins before: one may be killed


class Stream:
    """`async with Stream(…) as stream: async for event in stream.events(): …`"""

    def __init__(self, calls: Calls, job: str, position: Position, *, takes_reset: bool, patience: float) -> None:
        self._calls = calls
        self._key = JobKey(calls.client, job)
        self._place = Place(position)
        self._began = position
        self._takes_reset = takes_reset
        self._patience = patience
        self._trouble_since = math.inf
        self._chunks = ChunkQueue()
        self._reader = secrets.token_hex(4)
        self._is_counted = False  # as one of those that this client may have open
        self._is_held_back = True  # until a gateway has let it in, or none is there to say no
        self._is_written = False  # to its end
        self._doubts = 0
        self._looked_at = 0.0  # all times are monotonic
        self._not_before = 0.0  # after a failure
        self._look_at = 0.0  # when patience with silence ends
        self._timer: asyncio.TimerHandle | None = None
        self._news = asyncio.Event()
        self.end: End | None = None
        self._subscriptions: list[Subscription] = []
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Stream":
        try:
            for subject, receive in (
                (subjects.chunks_of_job(self._key), self._on_chunk),
                (subjects.hint(self._key), self._on_hint),
            ):
                self._subscriptions.append(await self._calls.bus.subscribe(subject, receive))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for subscription in self._subscriptions:
            await subscription.stop()
        if self._is_counted:
            with contextlib.suppress(ArrieroError):  # it lapses
                await self._calls.once("leave", {"id": self._key.job, "reader": self._reader}, timeout=LEAVE_S)

    def look_again(self) -> None:
        """Something may have been missed, or the connection is gone for good."""
        self._doubts += 1
        self._place.doubt()
        self._news.set()

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """Ends when the job has succeeded. Raises JobFailed when it ended otherwise, PositionLost, ArrieroError."""
        place = self._place
        while True:
            shown = place.chunk(*self._chunks.pop()) if self._has_chunks else b""
            if not shown and not self._has_chunks and time.monotonic() >= self._due():
                shown = await self._look()
            for event in self._events(shown):
                if isinstance(event, End):
                    self._ended(event)
                    return
                yield event
            if place.ended is not None:
                self._ended(End(state=place.ended))
                return
            if place.lost:
                if not self._takes_reset:
                    message = "what came after that position is not the same any more; read from the beginning"
                    raise PositionLost(message)
                place.reset()
                yield Reset()
            if self._watching is None and place.position.offset:
                self._watching = asyncio.create_task(self._watch_along(), name="arriero.watch")
            if not self._has_chunks and time.monotonic() < (due := self._due()):
                await self._wait(due)
            if self._calls.bus.lost.is_set():
                raise NotConnected("the connection to NATS is closed")

    def _ended(self, end: End) -> None:
        self.end = end
        if end.state != JobState.SUCCEEDED:
            raise ending_of(end.state, end.fault)

    def _events(self, shown: bytes) -> Iterator[StreamEvent | End]:
        """Whole events that end where the reader stands now."""
        epoch, offset = self._place.position
        offset -= len(shown)
        for raw in shown.split(b"\n")[:-1]:
            offset += len(raw) + 1
            try:
                event = event_of(raw, f"{epoch}.{offset}")
            except Malformed as error:
                if self._began.offset:
                    raise PositionLost("that position is not one that a stream gave") from error
                raise ArrieroError("the job's log cannot be read", code="internal") from error
            if event is not None:
                yield event

    # -- what comes in -------------------------------------------------------------------------------------------------

    def _on_chunk(self, message: Message) -> None:
        try:
            epoch = subjects.parse_out(message.subject).epoch
            offset, chunk = parse_frame(message.data)
        except (ValueError, Malformed):
            return
        self._chunks.add(Chunk(epoch, offset, chunk))
        if epoch == self._place.position.epoch:
            self._look_at = time.monotonic() + SILENCE_S
        self._news.set()

    def _on_hint(self, message: Message) -> None:
        try:
            hint = decode_hint(message.data)
        except Malformed:
            return
        if self._place.named(hint.epoch):
            self._doubts += 1
        if hint.state.final:
            self.look_again()  # unless the end event comes with it, which is dealt with before
        elif hint.state is not JobState.QUEUED:
            self._look_at = min(self._look_at, time.monotonic() + SILENCE_S)
        self._news.set()

    @property
    def _has_chunks(self) -> bool:
        return bool(self._chunks) and not self._is_held_back

    # -- what is asked for ---------------------------------------------------------------------------------------------

    def _due(self) -> float:
        """When a gateway has to be asked."""
        match self._place.ask:
            case Ask.NOW:
                return self._not_before
            case Ask.SOON:
                return max(self._not_before, self._looked_at + SOON_S)
        return self._look_at

    async def _look(self) -> bytes:
        place, doubts = self._place, self._doubts
        try:
            piece = await self._read(place.asks)
        except ArrieroError as error:
            self._is_held_back = error.code == Code.RATE_LIMITED
            self._bear(error)
            return b""
        self._is_counted, self._is_held_back = True, False
        self._looked_at = time.monotonic()
        shown = place.piece(piece)
        if doubts != self._doubts:
            place.doubt()  # what raised it may have come after the gateway had looked
        elif place.outdated:
            self._bear(PositionLost("the job never came to that position"), passes=True)
        else:
            self._trouble_since = math.inf
        waits = piece.state is JobState.QUEUED
        self._look_at = self._looked_at + (random.uniform(*QUEUED_LOOK_S) if waits else SILENCE_S)
        return shown

    async def _read(self, position: Position, *, wait_s: float = 0.0, timeout: float | None = None) -> Piece:
        where = {"epoch": position.epoch, "offset": position.offset}
        wish = {"id": self._key.job, "reader": self._reader, **where, "wait_s": wait_s}
        more = {} if timeout is None else {"timeout": timeout}
        try:
            return decode_piece(await self._calls.once("read", wish, **more))
        except Malformed as error:
            raise ArrieroError("a gateway's answer cannot be read", code="internal") from error

    def _bear(self, error: ArrieroError, *, passes: bool = False) -> None:
        """Raises it when it will not pass, or has not for too long."""
        now = time.monotonic()
        self._trouble_since = min(self._trouble_since, now)
        if not (passes or error.code in PASSING) or now - self._trouble_since >= self._patience:
            raise error
        self._place.doubt()
        self._not_before = now + max(SOON_S, error.retry_after_s or 0)

    # -- the gateways that watch along ---------------------------------------------------------------------------------

    async def _watch_along(self) -> None:
        seen = self._began
        async with asyncio.TaskGroup() as group:
            while not self._is_written:
                # From where the one before began: together they hold all that was said since.
                position, seen = seen, self._place.position
                group.create_task(self._watch_once(position))
                await asyncio.sleep(RENEW_S)

    async def _watch_once(self, position: Position) -> None:
        give_up = time.monotonic() + RENEW_S
        while time.monotonic() < give_up:
            try:
                piece = await self._read(position, wait_s=WATCH_S, timeout=WATCH_S + 2)
            except ArrieroError as error:
                await asyncio.sleep(max(SOON_S, error.retry_after_s or 0))
                continue
            if piece.state.final:
                self._is_written = True
                self.look_again()
            return

    # -- patience ------------------------------------------------------------------------------------------------------

    async def _wait(self, due: float) -> None:
        """Until there is news, or it is time. One timer goes on while tokens come; it may wake the reader for nothing."""
        self._news.clear()
        delay = max(0.0, due - time.monotonic())
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer.when() > loop.time() + delay:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_later(delay, self._wake)
        await self._news.wait()

    def _wake(self) -> None:
        self._timer = None
        self._news.set()
