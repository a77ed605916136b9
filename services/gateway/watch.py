"""One reader of one job: live chunks, what was missed, and changes of state, as one ordered stream (DESIGN §4).

It subscribes before it reads the folder, so that nothing falls in between; every doubt (a gap, silence, an unknown epoch) is
settled by asking the worker, then the leader. While it lives it answers the router's question what has been shown.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple, TypeAlias

import structlog

from libs.common.bus.connection import Bus, Message, Subscription
from libs.common.bus.failures import BusError
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.control import Read, decode_freeze
from libs.common.contracts.events import START, Position, frame, parse_frame
from libs.common.contracts.faults import Code, failed
from libs.common.contracts.jobs import Binding, Completion, decode_hint
from libs.common.contracts.subjects import JobKey
from libs.common.journal import Entry, Facts, Journal
from services.gateway.positions import Assembler, carry
from services.gateway.sse import END_PREFIX

log = structlog.get_logger()

SILENCE_S = 3.0  # a live attempt says something every second
QUEUED_LOOK_S = (15.0, 30.0)  # while a job waits nobody speaks; a lost hint costs this much at most
AFTER_FAILURE_S = 0.5
MAX_INBOX = (
    2 * 1024 * 1024
)  # bytes that a slow reader may leave waiting; then they are dropped and read again by offset


class Changed(NamedTuple):
    """The folder has a new state: a Submission or unbound Binding (queued), a bound one, never a Completion."""

    facts: Facts
    at_ms: int


class Log(NamedTuple):
    """Whole events that begin at `position`; `ended` if the end event is the last of them."""

    position: Position
    events: bytes
    ended: bool


class Reset(NamedTuple):
    """What was shown so far is void; the log begins anew. Only for readers that said they can take it."""


Item: TypeAlias = Changed | Log | Reset


class Watch:
    """`async with Watch(…) as watch: async for item in watch.items(): …`

    Who opens it before submitting says `submitted(sequence)` then, which saves the first look at the folder.
    """

    def __init__(self, bus: Bus, key: JobKey, position: Position = START, *, takes_reset: bool = False) -> None:
        self.key = key
        self._bus = bus
        self._journal = Journal(bus)
        self._position = position
        self._takes_reset = takes_reset
        self._assembler: Assembler | None = None
        self._binding: Binding | None = None
        self._known = 0  # sequence of the newest record seen
        self._frozen = 0  # nothing of this epoch and older ones is shown any more
        self._inbox: deque[tuple[int, int, bytes]] = deque()
        self._inbox_bytes = 0
        self._unexplained = 0  # an epoch that came before the folder could explain it
        self._look = True
        self._doubt = False  # the log itself may miss something: ask the worker
        self._look_at = 0.0  # when patience ends (monotonic)
        self._news = asyncio.Event()
        self._subscriptions: list[Subscription] = []

    async def __aenter__(self) -> "Watch":
        self._subscriptions = [
            await self._bus.subscribe(subjects.chunks_of_job(self.key), self._on_chunk),
            await self._bus.subscribe(subjects.hint(self.key), self._on_hint),
            await self._bus.subscribe(subjects.prefix(self.key), self._on_freeze),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for subscription in self._subscriptions:
            await subscription.stop()

    def submitted(self, sequence: int) -> None:
        """This process has just written the `new` of that sequence: there is nothing to look up yet."""
        if not self._known:
            self._known, self._look = sequence, False
            self._be_patient()

    async def items(self) -> AsyncIterator[Item]:
        """Ends after the end event. Raises Failed: job_not_found, position_lost, unavailable."""
        while True:
            if self._look:
                async for item in self._read_folder():
                    yield item
                    if isinstance(item, Log) and item.ended:
                        return
            while self._inbox:
                epoch, offset, chunk = self._inbox.popleft()
                self._inbox_bytes -= len(chunk)
                shown = self._take(epoch, offset, chunk)
                if shown is not None:
                    yield shown
                    if shown.ended:
                        return
            if self._doubt or (self._assembler and self._assembler.gap):
                async for repaired in self._ask_worker():
                    yield repaired
                    if repaired.ended:
                        return
            if not self._look and not self._inbox:
                await self._wait()

    # -- what comes in -------------------------------------------------------------------------------------------------

    def _on_chunk(self, message: Message) -> None:
        try:
            epoch = subjects.parse_out(message.subject).epoch
            offset, chunk = parse_frame(message.data)
        except (ValueError, Malformed) as error:
            log.warning("chunk.malformed", subject=message.subject, error=str(error))
            return
        if epoch <= self._frozen:
            return
        if self._inbox_bytes + len(chunk) > MAX_INBOX:
            self._inbox.clear()  # the offsets will show the gap, and the worker fills it
            self._inbox_bytes = 0
        self._inbox.append((epoch, offset, chunk))
        self._inbox_bytes += len(chunk)
        self._be_patient()
        self._news.set()

    def _on_hint(self, message: Message) -> None:
        try:
            hint = decode_hint(message.data)
        except Malformed:
            return
        if hint.sequence > self._known:
            self._look = True
            self._news.set()

    async def _on_freeze(self, message: Message) -> None:
        """The router took the job from its worker and asks what was shown; from here on nothing of that epoch is."""
        try:
            wish = decode_freeze(message.data)
        except Malformed:
            return
        held = (0, b"")
        if wish.epoch:
            self._frozen = max(self._frozen, wish.epoch)
            self._inbox = deque(entry for entry in self._inbox if entry[0] > self._frozen)
            self._inbox_bytes = sum(len(chunk) for _, _, chunk in self._inbox)
            if self._assembler and self._assembler.epoch == wish.epoch:
                held = self._assembler.kept()
        await self._bus.publish(message.reply, frame(*held))

    # -- the folder ----------------------------------------------------------------------------------------------------

    async def _read_folder(self) -> AsyncIterator[Item]:
        self._look = False
        self._be_patient()
        try:
            newest = await self._journal.newest(self.key)
        except BusError as error:
            log.info("watch.delayed", job_id=self.key.job, error=str(error))
            self._be_patient(AFTER_FAILURE_S)
            return
        if newest is None or newest.facts is None:
            raise failed(Code.JOB_NOT_FOUND, "the job does not exist, or its time is over")
        facts = newest.facts
        if isinstance(facts, Completion):
            async for item in self._replay(newest, facts):
                yield item
            return
        if newest.sequence == self._known:
            return
        self._known = newest.sequence
        self._binding = facts if isinstance(facts, Binding) and facts.node is not None else None
        yield Changed(facts, newest.at_ms)
        if self._binding is not None:
            reset = self._enter(self._binding)
            if reset is not None:
                yield reset

    def _enter(self, binding: Binding) -> Reset | None:
        """Go over to a new epoch, at the place where the reader stands."""
        if self._assembler is not None and self._assembler.epoch == binding.epoch:
            return None
        # A reader that comes to a job that is bound already may have missed what was said before.
        self._doubt = self._assembler is None and self._unexplained != binding.epoch
        position = carry(self._current, binding.epoch, binding.past)
        reset = None if position is not None else self._void()
        self._assembler = Assembler(position or Position(binding.epoch, 0))
        return reset

    async def _replay(self, newest: Entry, completion: Completion) -> AsyncIterator[Item]:
        if completion.erased:
            raise failed(Code.JOB_NOT_FOUND, "the job was erased")
        position = carry(self._current, completion.epoch, completion.past)
        whole = await self._journal.body(self.key, newest)
        if whole is None:
            raise failed(Code.JOB_NOT_FOUND, "the job's time is over")
        if position is None or not _at_event(whole, position.offset):
            yield self._void()
            position = Position(completion.epoch, 0)
        yield Log(position, whole[position.offset :], ended=True)

    @property
    def _current(self) -> Position:
        if self._assembler is None:
            return self._position
        return Position(self._assembler.epoch, self._assembler.shown)

    def _void(self) -> Reset:
        if not self._takes_reset:
            message = "what came after that position is not the same any more; read the job from its beginning"
            raise failed(Code.POSITION_LOST, message)
        return Reset()

    # -- the live log --------------------------------------------------------------------------------------------------

    def _take(self, epoch: int, offset: int, chunk: bytes) -> Log | None:
        if epoch <= self._frozen:
            return None
        if self._assembler is None or epoch > self._assembler.epoch:
            if self._unexplained != epoch:  # the folder has to explain it first, and is asked once
                self._unexplained = epoch
                self._inbox.appendleft((epoch, offset, chunk))
                self._inbox_bytes += len(chunk)
                self._look = True
            return None
        if epoch < self._assembler.epoch:
            return None
        before = Position(epoch, self._assembler.shown)
        events = self._assembler.feed(offset, chunk)
        return Log(before, events, _ends(events)) if events else None

    async def _ask_worker(self) -> AsyncIterator[Log]:
        """Catch up by offset. Whoever does not answer is asked again when patience ends; the folder is looked at, too."""
        self._doubt = False
        binding, assembler = self._binding, self._assembler
        if binding is None or binding.node is None or binding.boot is None or assembler is None:
            return
        while True:
            # One byte before, where a reader resumes: it must be the end of an event, or the position is made up.
            check = 1 if assembler.shown == assembler.received > 0 and not assembler.kept()[1] else 0
            offset = assembler.received - check
            wish = Read(client=self.key.client, job=self.key.job, epoch=assembler.epoch, offset=offset)
            try:
                reply = await self._bus.request(
                    subjects.worker(binding.node, binding.boot, "read"), encode(wish), timeout=SILENCE_S
                )
                start, chunk = parse_frame(reply) if reply else (offset, b"")
            except (BusError, Malformed) as error:
                log.info("watch.read_failed", job_id=self.key.job, error=str(error))
                self._be_patient(AFTER_FAILURE_S)
                return
            if check and chunk and chunk[:1] != b"\n":
                raise failed(Code.POSITION_LOST, "that position is not one that the stream has given")
            shown = self._take(assembler.epoch, start, chunk) if chunk else None
            if shown is not None:
                yield shown
                if shown.ended:
                    return
            if len(chunk) <= check:
                if assembler.gap:
                    self._be_patient(AFTER_FAILURE_S)
                    assembler.forget_parked()
                return

    def _be_patient(self, seconds: float | None = None) -> None:
        if seconds is None:
            seconds = SILENCE_S if self._binding is not None else random.uniform(*QUEUED_LOOK_S)
        self._look_at = time.monotonic() + seconds

    async def _wait(self) -> None:
        """Until there is news, or patience ends."""
        self._news.clear()
        try:
            async with asyncio.timeout(max(0.0, self._look_at - time.monotonic())):
                await self._news.wait()
        except TimeoutError:
            self._look = self._doubt = True


def _ends(events: bytes) -> bool:
    return events.startswith(END_PREFIX, events.rfind(b"\n", 0, len(events) - 1) + 1)


def _at_event(log: bytes, offset: int) -> bool:
    return offset == 0 or (offset <= len(log) and log[offset - 1 : offset] == b"\n")
