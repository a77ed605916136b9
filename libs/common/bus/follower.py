"""A gap-free, ordered view of some subjects of a stream, for indexes kept in memory.

nats-py's own ordered consumer is not used: it dies under v2 ack subjects (P2), loses what a slow consumer drops (P3), goes
on in silence after its stream was made anew (P5) and leaves its consumers behind (P13). This one counts deliveries itself,
and on any doubt makes a new consumer from the next sequence on, or starts over (`on_reset`) when the stream is another one.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.link import Message
from libs.common.bus.stored import Stored
from libs.common.contracts.streams import NANOSECOND

log = structlog.get_logger()

HEARTBEAT_S = 1
SILENCE_S = 3.5  # three heartbeats missed
RETRY_S = (0.1, 0.25, 0.5, 1.0, 2.0)
YIELD_EVERY = 200  # records between two looks at the event loop while a backlog streams in


class _Gap(Exception):
    pass


class Follower:
    """Calls `on_record` for every stored message in order, each at least once and, within one life of the stream, once.

    `on_reset` is called before the very first record and whenever everything must be forgotten. `caught_up` is set once
    all that was stored at the start has been delivered.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        subjects: list[str],
        on_record: Callable[[Stored], None],
        *,
        on_reset: Callable[[], None] = lambda: None,
        headers_only: bool = False,
        from_sequence: int = 1,
        after: Sequence["Follower"] = (),
    ) -> None:
        """`after`: others that must have caught up before this one begins. Several `subjects` in one consumer are slow on
        a stream with many erased messages; where no order is needed between them, use `Followers`."""
        self.caught_up = asyncio.Event()
        self.resets = 0
        self._bus = bus
        self._stream = stream
        self._subjects = subjects
        self._on_record = on_record
        self._on_reset = on_reset
        self._headers_only = headers_only
        self._from_sequence = from_sequence
        self._next_sequence = from_sequence
        self._after = after
        self._starts_over = False  # because somebody else found that everything must be forgotten
        self._life = ""  # when the stream was created: another value is another stream
        self._heard_at = 0.0
        self._delivered = 0
        self._behind = False  # what was stored while nobody listened is still on its way
        self._ended: asyncio.Future[None] | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        bus.on_reconnect(self._doubt)

    def problem(self) -> str | None:
        """For /readyz."""
        return None if self.fresh else f"what is known of {self._stream} may be out of date"

    @property
    def fresh(self) -> bool:
        """Caught up, and heard from within the last seconds: what is kept from it may be believed."""
        heard = time.monotonic() - self._heard_at < SILENCE_S + HEARTBEAT_S
        return heard and not self._behind and self.caught_up.is_set()

    async def reached(self, sequence: int, *, within: float) -> bool:
        """Has everything up to that sequence been delivered? Waits for it `within` seconds at most."""
        if self._next_sequence <= sequence:
            waiter = sequence, asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                with suppress(TimeoutError):
                    await asyncio.wait_for(waiter[1], within)
            finally:
                self._waiting.remove(waiter)
        return self._next_sequence > sequence

    async def run(self) -> None:
        """Runs until cancelled."""
        failures = 0
        while True:
            try:
                await self._follow_once()
                failures = 0
            except (_Gap, BusError) as error:
                log.debug("follower.restart", stream=self._stream, why=str(error) or type(error).__name__)
                await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1

    def start_over(self) -> None:
        """Forget everything, like a reset, but without `on_reset`: whoever calls this has seen to it. Nothing of the consumer
        before is delivered any more."""
        self._starts_over = True
        self.caught_up.clear()
        self._doubt()

    async def _follow_once(self) -> None:
        await self._check_life()
        self._delivered = 0
        self._ended = asyncio.get_running_loop().create_future()
        for other in self._after:
            await other.caught_up.wait()
        # From here on records of a backlog may arrive, before it is known how long it is. After an absence they do not
        # make the view fresh: a revocation may be the last of them. A short gap is covered by what `fresh` allows anyway.
        self._behind = not self.fresh
        inbox = self._bus.new_inbox()
        name = f"follow-{secrets.token_hex(8)}"
        subscription = await self._bus.subscribe(inbox, self._receive)
        try:
            created = await self._bus.api(
                f"CONSUMER.CREATE.{self._stream}.{name}",
                {
                    "stream_name": self._stream,
                    "action": "create",
                    "config": {
                        "name": name,
                        "deliver_subject": inbox,
                        "deliver_policy": "by_start_sequence",
                        "opt_start_seq": max(1, self._next_sequence),
                        "ack_policy": "none",
                        "max_deliver": 1,
                        "filter_subjects": self._subjects,
                        "headers_only": self._headers_only,
                        "idle_heartbeat": HEARTBEAT_S * NANOSECOND,
                        "flow_control": True,
                        "inactive_threshold": 10 * NANOSECOND,
                        "mem_storage": True,
                        "num_replicas": 1,
                    },
                },
            )
            if self._ended.done():
                raise _Gap("everything is to be forgotten, or the connection was away")
            backlog = created["num_pending"] + created["delivered"]["consumer_seq"]
            self._behind = self._delivered < backlog
            self._heard_at = time.monotonic()
            if backlog == 0:
                self.caught_up.set()
            while True:
                await asyncio.wait([self._ended], timeout=1)
                if self._ended.done():
                    raise _Gap("deliveries do not follow each other, or the connection was away")
                if time.monotonic() - self._heard_at > SILENCE_S:
                    raise _Gap("no heartbeat")
        finally:
            await subscription.stop()
            if self._bus.connected:
                await self._bus.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{name}")

    async def _check_life(self) -> None:
        info = await self._bus.api(f"STREAM.INFO.{self._stream}")
        life, last = info["created"], info["state"]["last_seq"]
        told, self._starts_over = self._starts_over, False
        if told or life != self._life or self._next_sequence > last + 1:
            self._life, self._next_sequence = life, self._from_sequence if not self._life else 1
            self.caught_up.clear()
            self.resets += 1
            if not told:
                self._on_reset()

    def _doubt(self) -> None:
        if self._ended and not self._ended.done():
            self._ended.set_result(None)

    async def _receive(self, message: Message) -> None:
        if self._ended is None or self._ended.done():
            return
        self._heard_at = time.monotonic()
        if status := message.headers.get("Status"):
            await self._control(status, message)
            return
        delivered, sequence, at_ms, pending = parse_ack(message.reply)
        if delivered != self._delivered + 1:
            self._doubt()
            return
        self._delivered = delivered
        self._next_sequence = sequence + 1
        self._on_record(Stored(message.subject, sequence, at_ms, message.headers, message.data))
        for wanted, waiting in self._waiting:
            if wanted <= sequence and not waiting.done():
                waiting.set_result(None)
        if pending == 0:
            self.caught_up.set()
            self._behind = False
        if delivered % YIELD_EVERY == 0:
            await asyncio.sleep(0)

    async def _control(self, status: str, message: Message) -> None:
        if status != "100":  # 409 and kin: the consumer was deleted, or its leader changed
            self._doubt()
        elif message.reply:  # a flow control request
            await self._bus.publish(message.reply)
        elif stalled := message.headers.get("Nats-Consumer-Stalled"):
            await self._bus.publish(stalled)
        elif int(message.headers.get("Nats-Last-Consumer", self._delivered)) != self._delivered:
            self._doubt()
        elif self._behind:  # a heartbeat: nothing is left to send, so the rest of the backlog was erased or has expired
            self._behind = False
            self.caught_up.set()


class Followers:
    """Several followers of one stream that feed one view: ordered within each, in no order between them.

    `on_reset` is called before the very first record and whenever everything must be forgotten; then all start over.
    """

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self.resets = 0
        self._on_reset = on_reset
        self._members: dict[str, Follower] = {}

    def add(
        self,
        name: str,
        bus: Bus,
        stream: str,
        subject: str,
        on_record: Callable[[Stored], None],
        *,
        headers_only: bool = False,
        from_sequence: int = 1,
        after: Sequence[str] = (),
    ) -> None:
        self._members[name] = Follower(
            bus,
            stream,
            [subject],
            on_record,
            on_reset=lambda: self._reset(name),
            headers_only=headers_only,
            from_sequence=from_sequence,
            after=[self._members[other] for other in after],
        )

    @property
    def caught_up(self) -> bool:
        """All of them have delivered what was stored when they began."""
        return all(member.caught_up.is_set() for member in self._members.values())

    async def wait_caught_up(self) -> None:
        while not self.caught_up:
            for member in self._members.values():
                await member.caught_up.wait()

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What must run, endlessly, for each."""
        return {name: member.run() for name, member in self._members.items()}

    def problems(self) -> dict[str, Callable[[], str | None]]:
        """For /readyz."""
        return {name: member.problem for name, member in self._members.items()}

    def _reset(self, first: str) -> None:
        self.resets += 1
        for name, member in self._members.items():
            if name != first:
                member.start_over()
        self._on_reset()


def parse_ack(reply: str) -> tuple[int, int, int, int]:
    """(consumer sequence, stream sequence, time in ms, pending) of a `$JS.ACK…` subject, of either version (ADR-15)."""
    tokens = reply.split(".")
    # v1 has 9 tokens; v2 puts domain and account before the stream, and may have a random token at the end.
    first = 4 if len(tokens) == 9 else 6
    _, sequence, delivered, nanoseconds, pending = (int(t) for t in tokens[first : first + 5])
    return delivered, sequence, nanoseconds // 1_000_000, pending
