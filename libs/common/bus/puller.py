"""Work from a durable pull consumer that several processes share: each message is one's until it is acked, given back, or
not acked in time.

nats-py's `fetch` is not used: it does not notice reconnects (P6). Here each pull has an inbox of its own, and is made anew
after a reconnect, any terminal status, or silence.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.follower import parse_ack
from libs.common.bus.link import Message
from libs.common.contracts.streams import NANOSECOND

log = structlog.get_logger()

ACK_WAIT_S = 20  # then another one gets it: whoever works on a message is done, or dead, by then
EXPIRES_S = 30
HEARTBEAT_S = 5
RETRY_S = (0.1, 0.5, 1.0, 2.0, 5.0)


class Work(NamedTuple):
    """`at_ms`: when it was stored, by the server's clock. `reply`: where its fate is said."""

    subject: str
    data: bytes
    headers: dict[str, str]
    sequence: int
    at_ms: int
    reply: str


class Puller:
    """Calls `handle` for each message in a task of its own, at most `limit` at once. `handle` says done or later itself; what
    it leaves, or fails at, comes again after ACK_WAIT_S."""

    def __init__(
        self,
        bus: Bus,
        stream: str,
        consumer: str,
        subject: str,
        handle: Callable[[Work], Awaitable[None]],
        *,
        limit: int,
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._consumer = consumer
        self._subject = subject
        self._handle = handle
        self._limit = limit
        self._running: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._again = asyncio.Event()  # this pull is over, or its connection was away
        self._stopped = asyncio.Event()
        self._there = False  # the consumer
        bus.on_reconnect(self._again.set)

    async def run(self) -> None:
        """Runs until stopped or cancelled."""
        failures = 0
        try:
            while not self._stopped.is_set():
                try:
                    if not self._there:
                        await self._make()
                    await self._free()
                    if not self._stopped.is_set() and not await self._pull(self._limit - len(self._running)):
                        raise BusError("the consumer does not answer")
                    failures = 0
                except BusError as error:
                    log.debug("puller.again", consumer=self._consumer, why=str(error))
                    self._there = False
                    await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                    failures += 1
        except asyncio.CancelledError:
            self._cut()
            raise

    async def stop(self, within: float) -> None:
        """Takes nothing new; what is being worked on may end within so many seconds."""
        self._stopped.set()
        self._again.set()
        self._freed.set()
        if self._running:
            await asyncio.wait(list(self._running), timeout=within)
        self._cut()

    def _cut(self) -> None:
        for task in self._running:
            task.cancel()

    async def done(self, reply: str) -> None:
        """Never again. Lost acks mean once more."""
        await self._bus.publish(reply, b"+ACK")

    async def later(self, reply: str, seconds: float) -> None:
        await self._bus.publish(reply, b'-NAK {"delay":%d}' % int(max(0.0, seconds) * NANOSECOND))

    async def _make(self) -> None:
        """Made if it is not there; the same again is no change."""
        await self._bus.api(
            f"CONSUMER.CREATE.{self._stream}.{self._consumer}.{self._subject}",
            {
                "stream_name": self._stream,
                "config": {
                    "durable_name": self._consumer,
                    "name": self._consumer,
                    "deliver_policy": "all",
                    "ack_policy": "explicit",
                    "ack_wait": ACK_WAIT_S * NANOSECOND,
                    "max_deliver": -1,
                    "max_ack_pending": -1,  # what waits for a later try counts, too
                    "filter_subject": self._subject,
                },
            },
        )
        self._there = True

    async def _free(self) -> None:
        while len(self._running) >= self._limit and not self._stopped.is_set():
            self._freed.clear()
            await self._freed.wait()

    async def _pull(self, batch: int) -> bool:
        """One request for so many messages; false when it got no answer at all."""
        self._again.clear()
        if not self._bus.connected:
            return False
        received, heard = 0, False

        def receive(message: Message) -> None:
            nonlocal received, heard
            heard = True
            status = message.headers.get("Status")
            if status == "100":
                return
            if status is not None:
                if status in ("503", "404") or "Consumer" in message.headers.get("Description", ""):
                    self._there = False
                self._again.set()
                return
            received += 1
            if received >= batch:
                self._again.set()
            self._begin(message)

        asked = {"batch": batch, "expires": EXPIRES_S * NANOSECOND, "idle_heartbeat": HEARTBEAT_S * NANOSECOND}
        inbox = self._bus.new_inbox()
        subscription = await self._bus.subscribe(inbox, receive)
        try:
            await self._bus.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}", msgspec.json.encode(asked), reply=inbox
            )
            while not self._again.is_set():
                heard = False
                try:
                    await asyncio.wait_for(self._again.wait(), 2.5 * HEARTBEAT_S)
                except TimeoutError:
                    if not heard:
                        return False
        finally:
            await subscription.stop()
        return self._there

    def _begin(self, message: Message) -> None:
        _, sequence, at_ms, _ = parse_ack(message.reply)
        work = Work(message.subject, message.data, message.headers, sequence, at_ms, message.reply)
        task = asyncio.create_task(self._one(work), name=f"puller.{self._consumer}")
        self._running.add(task)
        task.add_done_callback(self._ended)

    async def _one(self, work: Work) -> None:
        try:
            await self._handle(work)
        except BusError as error:
            log.info("puller.left", consumer=self._consumer, error=str(error))
        except Exception:
            log.exception("puller.failed", consumer=self._consumer)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._freed.set()
