"""One reader of one job: live chunks, what was missed, and changes of state, as one ordered stream (DESIGN §4).

It subscribes before it reads the folder, so that nothing falls in between; every doubt (a gap, silence, an unknown epoch) is
settled by asking the worker, then the leader. While it lives it answers the router's question what has been shown.
"""

import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import NamedTuple, TypeAlias

import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.link import Message, Subscription
from libs.common.chunk_queue import Chunk, ChunkQueue
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.control import Read, decode_freeze
from libs.common.contracts.events import MAX_CHUNK, START, Position, frame, parse_frame, whole_events
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.contracts.jobs import Binding, Completion, Submission, decode_hint
from libs.common.contracts.subjects import JobKey
from libs.common.folder import Entry, Facts
from libs.common.journal import Journal
from libs.common.positions import Assembler, carry
from services.gateway.dialects import NOT_FOUND_JOB
from services.gateway.patience import Patience
from services.gateway.sse import END_PREFIX

log = structlog.get_logger()

SILENCE_S = 3.0  # a live attempt says something every second
QUEUED_LOOK_S = (15.0, 30.0)  # while a job waits nobody speaks; a lost hint costs this much at most


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
        self.job: Submission | None = None  # the job's facts and the time of its `new`: known before its first event
        self.created_ms = 0
        self._bus = bus
        self._journal = Journal(bus)
        self._position = position
        self._unverified = position.offset > 0  # a client's word: nothing is shown until somebody knows that place
        self._takes_reset = takes_reset
        self._assembler: Assembler | None = None
        self._binding: Binding | None = None
        self._known = 0  # sequence of the newest record seen
        self._frozen = 0  # nothing of this epoch and older ones is shown any more
        self._chunks = ChunkQueue()
        self._unexplained = 0  # an epoch that came before the folder could explain it
        self._missed = 0  # an epoch whose first chunks were dropped for that reason
        self._look = True
        self._doubt = False  # the log itself may miss something: ask the worker
        self._patience = Patience(self._look_anew)
        self._subscriptions: list[Subscription] = []

    async def __aenter__(self) -> "Watch":
        wanted: list[tuple[str, Callable[[Message], Awaitable[None] | None]]] = [
            (subjects.chunks_of_job(self.key), self._on_chunk),
            (subjects.hint(self.key), self._on_hint),
            (subjects.prefix(self.key), self._on_freeze),
        ]
        try:
            for subject, receive in wanted:
                self._subscriptions.append(await self._bus.subscribe(subject, receive))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._patience.stop()
        for subscription in self._subscriptions:
            await subscription.stop()

    def submitted(self, sequence: int) -> None:
        """This process has just written the `new` of that sequence: there is nothing to look up yet."""
        if not self._known:
            self._known, self._look = sequence, False
            self._be_patient()

    async def items(self) -> AsyncGenerator[Item, None]:
        """Ends after the end event. Raises Failed: job_not_found, position_lost."""
        while True:
            # Before the folder: the end event and the hint of `done` come together, and the event needs no look-up.
            while self._chunks and not self._held_up():
                shown = self._take(self._chunks.pop())
                if shown is not None:
                    yield shown
                    if shown.ended:
                        return
            if self._look:
                async for item in self._read_folder():
                    yield item
                    if isinstance(item, Log) and item.ended:
                        return
                if self._chunks and not self._held_up():
                    continue  # what came meanwhile may be all there is to know
            if self._unverified and self._doubt and (reset := await self._verify()) is not None:
                yield reset
            if not self._unverified and (self._doubt or (self._assembler and self._assembler.gap)):
                async for repaired in self._ask_worker():
                    yield repaired
                    if repaired.ended:
                        return
            if not self._look and (not self._chunks or self._held_up()):
                await self._patience.wait()

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
        self._chunks.add(Chunk(epoch, offset, chunk))
        if self._assembler is not None and epoch == self._assembler.epoch:
            self._be_patient()  # others prove nothing: a fenced worker can go on talking for a while
        self._patience.news()

    def _on_hint(self, message: Message) -> None:
        try:
            hint = decode_hint(message.data)
        except Malformed:
            return
        if hint.sequence > self._known:
            self._look = True
            self._patience.news()

    async def _on_freeze(self, message: Message) -> None:
        """The router took the job from its worker and asks what was shown; from here on nothing of that epoch is."""
        try:
            wish = decode_freeze(message.data)
        except Malformed:
            return
        held = (0, b"")
        if wish.epoch:
            self._freeze(wish.epoch)
            if self._assembler and self._assembler.epoch == wish.epoch:
                held = self._assembler.kept()
        await self._bus.publish(message.reply, frame(*held))

    def _freeze(self, epoch: int) -> None:
        if epoch > self._frozen:
            self._frozen = epoch
            self._chunks.forget(epoch)

    def _held_up(self) -> bool:
        """Must the chunks wait: for the place of the reader to be known, or for the folder to explain its first epoch?"""
        if self._assembler is None:
            return self._look
        return self._unverified or (self._look and self._chunks.epoch > self._assembler.epoch)

    # -- the folder ----------------------------------------------------------------------------------------------------

    async def _read_folder(self) -> AsyncIterator[Item]:
        self._look = False
        self._be_patient()
        try:
            newest = await self._journal.newest(self.key)
        except BusError as error:
            log.info("watch.delayed", job_id=self.key.job, error=str(error))
            self._patience.try_again()
            return
        if newest is None or newest.facts is None:
            raise Failed(NOT_FOUND_JOB)
        if newest.sequence <= self._known:
            return  # nothing new, or a leader just deposed that speaks of what was
        facts = newest.facts
        if isinstance(facts, Submission):
            self.job, self.created_ms = facts, newest.at_ms
        else:
            self.job, self.created_ms = facts.job, facts.created_ms
        if isinstance(facts, Completion):
            async for item in self._replay(newest, facts):
                yield item
            return
        late, self._known = self._known == 0, newest.sequence
        self._binding = None
        reset = None
        if isinstance(facts, Binding):
            for earlier in facts.past:
                if earlier.base is not None:
                    self._freeze(earlier.epoch)  # the base is fixed: more of it must not be shown
            if facts.node is not None:
                self._binding = facts
                # Before the news is told: a position that is lost is an answer of its own, not a broken stream.
                reset = self._enter(facts, late=late)  # an empty tuple when there is one, so never asked for its truth
                if reset is None and self._unverified:
                    reset = await self._verify()
        yield Changed(facts, newest.at_ms)
        if reset is not None:
            yield reset

    def _enter(self, binding: Binding, *, late: bool) -> Reset | None:
        """Go over to a new epoch, at the place where the reader stands. Who comes late has missed what was said before."""
        if self._assembler is not None and self._assembler.epoch == binding.epoch:
            return None
        self._doubt = late or self._unverified or self._missed == binding.epoch
        position = carry(self._current, binding.epoch, binding.past)
        reset = None
        if position is None:
            reset, position = self._void(), Position(binding.epoch, 0)
            self._doubt = True
        self._assembler = Assembler(position)
        self._be_patient()
        return reset

    async def _replay(self, newest: Entry, completion: Completion) -> AsyncIterator[Item]:
        if completion.erased:
            raise Failed(NOT_FOUND_JOB)
        position = carry(self._current, completion.epoch, completion.past)
        try:
            whole = await self._journal.body(self.key, newest)
        except BusError as error:
            log.info("watch.delayed", job_id=self.key.job, error=str(error))
            self._patience.try_again()
            return
        if whole is None:
            raise Failed(NOT_FOUND_JOB)
        if position is None or not _at_event(whole, position.offset):
            yield self._void()
            position = Position(completion.epoch, 0)
        for offset, events, last in _pieces(whole, position.offset):
            yield Log(Position(completion.epoch, offset), events, ended=last)

    @property
    def _current(self) -> Position:
        if self._assembler is None:
            return self._position
        return Position(self._assembler.epoch, self._assembler.shown)

    def _void(self) -> Reset:
        if not self._takes_reset:
            message = "what came after that position is not the same any more; read the job from its beginning"
            raise failed(Code.POSITION_LOST, message)
        self._unverified = False
        return Reset()

    # -- the live log --------------------------------------------------------------------------------------------------

    def _take(self, chunk: Chunk) -> Log | None:
        epoch = chunk.epoch
        if epoch <= self._frozen:
            return None
        if self._assembler is None or epoch > self._assembler.epoch:
            if self._unexplained != epoch:  # the folder has to explain it first
                self._unexplained = epoch
                self._chunks.put_back(chunk)
                self._look = True
            else:
                self._missed = epoch  # it could not: looked at again soon, and then the worker is asked
                self._patience.try_again()
            return None
        if epoch < self._assembler.epoch:
            return None
        before, received = Position(epoch, self._assembler.shown), self._assembler.received
        events = self._assembler.feed(chunk.offset, chunk.data)
        if self._assembler.received > received:
            self._doubt = False  # it joins on to what is there, so nothing before it was missed
        return Log(before, events, _ends(events)) if events else None

    async def _ask_worker(self) -> AsyncIterator[Log]:
        """Catch up by offset. Whoever does not answer is asked again when patience ends; the folder is looked at, too."""
        self._doubt = False
        assembler = self._assembler
        while assembler is not None and assembler.epoch > self._frozen:
            before = assembler.received
            try:
                found = await self._read(before)
            except (BusError, Malformed) as error:
                log.info("watch.read_failed", job_id=self.key.job, error=str(error))
                self._patience.try_again()
                return
            shown = self._take(Chunk(assembler.epoch, *found)) if found and found[1] else None
            if shown is not None:
                yield shown
                if shown.ended:
                    return
            if assembler.received == before:
                if assembler.gap:
                    self._patience.try_again()
                    assembler.forget_parked()
                return

    async def _verify(self) -> Reset | None:
        """A client's position must be the end of an event, or it was made up. Undecided while the worker is silent."""
        self._doubt = False
        assembler = self._assembler
        if assembler is None or assembler.epoch <= self._frozen:
            return None
        try:
            found = await self._read(assembler.shown - 1)
            if found is None and await self._read(0) is None:
                self._patience.try_again()  # the run has not come there yet, or is not there any more
                return None
        except (BusError, Malformed) as error:
            log.info("watch.read_failed", job_id=self.key.job, error=str(error))
            self._patience.try_again()
            return None
        self._doubt = True
        if found is not None and found[1][:1] == b"\n":
            self._unverified = False
            self._chunks.put_back(Chunk(assembler.epoch, *found))
            return None
        reset = self._void()
        self._assembler = Assembler(Position(assembler.epoch, 0))
        return reset

    async def _read(self, offset: int) -> tuple[int, bytes] | None:
        """The worker's log from there on; None when it knows no such run, or not so much of it. Raises BusError, Malformed."""
        binding = self._binding
        if binding is None or binding.node is None or binding.boot is None:
            return None
        wish = Read(client=self.key.client, job=self.key.job, epoch=binding.epoch, offset=offset)
        subject = subjects.worker(binding.node, binding.boot, "read")
        reply = await self._bus.request(subject, encode(wish), timeout=SILENCE_S)
        return parse_frame(reply) if reply else None

    # -- patience ------------------------------------------------------------------------------------------------------

    def _be_patient(self) -> None:
        self._patience.last(SILENCE_S if self._binding is not None else random.uniform(*QUEUED_LOOK_S))

    def _look_anew(self) -> None:
        self._look = self._doubt = True


def _ends(events: bytes) -> bool:
    return events.startswith(END_PREFIX, events.rfind(b"\n", 0, len(events) - 1) + 1)


def _at_event(log: bytes, offset: int) -> bool:
    return offset == 0 or (offset <= len(log) and log[offset - 1 : offset] == b"\n")


def _pieces(log: bytes, offset: int) -> Iterator[tuple[int, bytes, bool]]:
    """(offset, whole events, last) from `offset` on, a chunk's worth at a time: a slow client holds no second copy of all."""
    while len(log) - offset > MAX_CHUNK:
        cut = whole_events(log[offset : offset + MAX_CHUNK]) or log.index(b"\n", offset) + 1 - offset
        if offset + cut == len(log):
            break
        yield offset, log[offset : offset + cut], False
        offset += cut
    yield offset, log[offset:], True
