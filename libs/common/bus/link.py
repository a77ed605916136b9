"""One connection to NATS that heals itself or says that it is dead.

Met here (numbers of nats-jetstream.md §2.2): P1 and P2 a dead reader task is noticed within a second and the connection
made anew; P8 a closed client ends the process through
`lost`; P9 permission errors are logged loudly; P10 callbacks only; P12 headers are never shared. We never flush and never
drain, because both leave a future behind whose cancellation kills the reader.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import nats
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from libs.common.bus import tls as bus_tls
from libs.common.bus.failures import (
    TOO_LARGE,
    Away,
    BusError,
    NoResponders,
    Refused,
)
from libs.common.bus.tls import BadTls, NotEncrypted, Tls
from libs.common.logs import without_password

log = structlog.get_logger()

REQUEST_TIMEOUT_S = 2.0
MAX_HANDLERS = 2000  # requests served at once per subject; more are dropped, the asker asks again
FIRST_CONNECT_S = 30.0
REFUSED_ATTEMPTS = 10  # in a row; a cluster's servers may reload their users one after the other
SAY_AGAIN_S = 10.0  # nats-py tells the same error with every attempt to reconnect, four times a second

Headers = dict[str, str]

# What nats-py's calls raise when the connection has just broken; uvloop says RuntimeError of a transport that is closed.
BROKEN = (nats.errors.Error, OSError, RuntimeError)


class Message(NamedTuple):
    subject: str
    data: bytes
    headers: Headers
    reply: str


class _Client(Client):
    """P17: before it reconnects, nats-py waits until the old connection has sent all it held. Behind a cable that was pulled that
    takes until TCP gives up, a quarter of an hour, or until the cable is back and TCP's next attempt is due."""

    async def _attempt_reconnect(self) -> None:
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        await super()._attempt_reconnect()

    def _connect_command(self) -> bytes:
        """P18: nats-py encrypts when the server says so, and a server, or whoever is in between, may say nothing."""
        server, writer = self._current_server, getattr(self._transport, "_io_writer", None)
        if server and server.uri.scheme == "tls" and (not writer or writer.get_extra_info("ssl_object") is None):
            raise NotEncrypted(
                f"{server.uri.hostname}:{server.uri.port} does not speak TLS although it is named with tls://"
            )
        return super()._connect_command()


class Subscription:
    """A running subscription; `stop` twice is harmless."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def stop(self) -> None:
        with suppress(*BROKEN):
            await self._inner.unsubscribe()


class Link:
    """`lost` is set when the connection is gone for good: the process must end."""

    def __init__(self, user: str, *, logger: Any = log) -> None:
        self.user = user
        self._logger = logger
        self.lost = asyncio.Event()
        self.connections = 0  # counts up with every (re)connect: who keeps liveness clocks restarts them then
        self.connected_at = 0.0  # monotonic
        self.replicated = False  # JOBS has replicas: absence needs two looks
        self._client = _Client()
        self._on_reconnect: list[Callable[[], None]] = []
        self._handlers: set[asyncio.Task[None]] = set()
        self._closing = False
        self._refused = 0  # attempts to connect that ended with "authorization violation", since the last connect
        self._refusal = ""  # in its words; a later attempt may see no more of the same answer than a reset connection
        self._said = ("", 0.0)  # the last error, and when it was logged
        self._tls = Tls()
        self._tls_refused = 0  # handshakes that failed for good, before the first connect
        self._hopeless: asyncio.Future[str] | None = None  # while connecting for the first time: why that cannot be
        self._watchdog: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    @property
    def complaint(self) -> str:
        """What NATS, or the way to it, said last of what it does not like."""
        return self._said[0]

    async def open(
        self,
        servers: list[str],
        *,
        password: str = "",
        nkey_seed: str = "",
        tls: Tls | None = None,
        name: str = "",
        login: str = "",
        first: str = "$JS.API.INFO",
        within: float | None = None,
    ) -> None:
        """As `user` with `password`, or as the holder of `nkey_seed`; the inboxes are under _INBOX.<user> in either case.

        `login`: the user's name, where it is not the one its inboxes have. `first`: a subject that is asked before anything else;
        empty for users who may not ask it: they ask a first question of their own, alone. Raises Away when no server answers
        within 30 s (P8: with endless reconnects, the first connect never gives up), or none can be trusted.
        """
        self._tls = tls or Tls()
        within = FIRST_CONNECT_S if within is None else within
        self._hopeless = asyncio.get_running_loop().create_future()
        user = None if nkey_seed else login or self.user or None
        try:
            async with asyncio.timeout(within):
                connecting = asyncio.create_task(
                    self._connect(servers, user, password, nkey_seed, name), name="bus.connect"
                )
                either: list[asyncio.Future[Any]] = [connecting, self._hopeless]
                try:
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                    if not connecting.done():
                        raise Away(self._hopeless.result())
                    await connecting
                finally:
                    if connecting.cancel():
                        await asyncio.wait({connecting})
                if first:
                    await self._first_question(first)
        except (nats.errors.Error, OSError, TimeoutError, BadTls, NotEncrypted, Away) as error:
            with suppress(Exception):
                await self._client.close()
            why = bus_tls.refusal(error, self._tls) or self._refusal or str(error) or self._said[0]
            why = why or f"no answer in {within} s"
            where = without_password(", ".join(servers))
            raise Away(f"cannot reach NATS at {where} as user {self.user or '(none)'}: {why}") from error
        finally:
            self._hopeless = None
        self.connections, self.connected_at, self._refused = 1, time.monotonic(), 0
        self._watchdog = asyncio.create_task(self._watch_tasks(), name="bus.watchdog")

    async def _connect(self, servers: list[str], user: str | None, password: str, nkey_seed: str, name: str) -> None:
        encrypted = any(url.startswith("tls://") for url in servers)
        await self._client.connect(
            servers=servers,
            name=name or self.user,
            user=user,
            password=password or None,
            nkeys_seed_str=nkey_seed or None,
            tls=bus_tls.context(self._tls) if encrypted else None,
            tls_handshake_first=self._tls.first,
            inbox_prefix=f"_INBOX.{self.user}" if self.user else "_INBOX",
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,  # type: ignore[arg-type]  # annotated as int, slept as float
            # A server that went away without a word is left within 4 s: before those who listen through another
            # one take this process for dead (8 s of silence), and before clocks run that an outage should stop.
            ping_interval=1,
            max_outstanding_pings=3,
            pending_size=8 << 20,
            error_cb=self._on_error,
            closed_cb=self._on_closed,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
        )

    async def _first_question(self, subject: str) -> None:
        """Makes nats-py set up its reply inbox now: two first requests at once would each make one."""
        while True:
            try:
                await self._client.request(subject, timeout=REQUEST_TIMEOUT_S)
                return
            except nats.errors.TimeoutError:  # a cluster without a meta leader leaves it unanswered for ever: ask again
                continue

    async def close(self) -> None:
        if self._watchdog:
            self._watchdog.cancel()
        self._closing = True
        for handler in list(self._handlers):
            handler.cancel()
        with suppress(nats.errors.Error, TimeoutError, OSError):  # the connection may just have broken
            # close() flushes what is pending itself.
            await asyncio.wait_for(asyncio.shield(self._client.close()), 5)

    def new_inbox(self) -> str:
        """A subject under this user's own inbox prefix."""
        return self._client.new_inbox()

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._on_reconnect.append(callback)

    # -- core NATS ---------------------------------------------------------------------------------------------------

    async def publish(self, subject: str, payload: bytes = b"", *, reply: str = "") -> None:
        """Fire and forget. What is published while NATS is away may be delivered late, or never. Raises Refused if too large."""
        self._check_size(subject, payload, None)
        with suppress(nats.errors.OutboundBufferLimitError, nats.errors.ConnectionClosedError, OSError, RuntimeError):
            await self._client.publish(subject, payload, reply=reply)

    async def request(self, subject: str, payload: bytes = b"", *, timeout: float = REQUEST_TIMEOUT_S) -> bytes:
        """The answer's bytes. Raises NoResponders (at once), Away, or Refused when the server would not take it."""
        return (await self._ask(subject, payload, timeout)).data

    async def ask_all(self, subject: str, payload: bytes, *, within: float, limit: int = 64) -> list[bytes]:
        """Every answer that comes within so many seconds; at once empty when nobody listens. Raises Away if not connected."""
        if not self.connected:
            raise Away("not connected to NATS")
        answers: list[bytes] = []
        enough = asyncio.Event()

        def receive(message: Message) -> None:
            if message.headers.get("Status") == "503":
                enough.set()
            else:
                answers.append(message.data)
                if len(answers) >= limit:
                    enough.set()

        inbox = self._client.new_inbox()
        subscription = await self.subscribe(inbox, receive)
        try:
            await self.publish(subject, payload, reply=inbox)
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await enough.wait()
        finally:
            await subscription.stop()
        return answers[:limit]  # several may come in one read

    async def subscribe(
        self, subject: str, receive: Callable[[Message], Awaitable[None] | None], *, queue: str = ""
    ) -> Subscription:
        """`receive` is called for each message in order; it must not wait for anything slow. Raises Away when closed for good."""

        async def callback(msg: Msg) -> None:
            waiting = receive(Message(msg.subject, msg.data, dict(msg.headers or {}), msg.reply))
            if waiting is not None:
                await waiting

        try:
            return Subscription(await self._client.subscribe(subject, queue=queue, cb=callback))
        except (nats.errors.ConnectionClosedError, OSError, RuntimeError) as error:
            raise Away("the connection to NATS is closed") from error

    async def serve(
        self, subject: str, answer: Callable[[Message], Awaitable[bytes | None]], *, queue: str = ""
    ) -> Subscription:
        """Answer requests, each in a task of its own; None answers nothing. P12: the reply is a plain publish."""

        running: set[asyncio.Task[None]] = set()

        async def handle(message: Message) -> None:
            try:
                reply = await answer(message)
                if reply is not None and message.reply:
                    await self.publish(message.reply, reply)
            except BusError as error:
                self._logger.warning("bus.request_unanswered", subject=message.subject, error=str(error))
            except Exception:
                self._logger.exception("bus.handler_failed", subject=message.subject)

        def receive(message: Message) -> None:
            if self._closing:
                return  # what still comes while the connection is closed finds nobody
            if len(running) >= MAX_HANDLERS:
                self._logger.warning("bus.request_dropped", subject=message.subject, handlers=len(running))
                return
            task = asyncio.create_task(handle(message))
            for tasks in (running, self._handlers):
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        return await self.subscribe(subject, receive, queue=queue)

    async def _ask(self, subject: str, payload: bytes, timeout: float, headers: Headers | None = None) -> Msg:
        if not self.connected:
            raise Away("not connected to NATS")
        try:
            return await self._asked(subject, payload, timeout, headers)
        except nats.errors.NoRespondersError as error:
            raise NoResponders(f"nobody answers on {subject}") from error
        except (*BROKEN, TimeoutError) as error:
            raise Away(f"no answer on {subject}: {type(error).__name__}") from error

    async def _asked(self, subject: str, payload: bytes, timeout: float, headers: Headers | None) -> Msg:
        """nats-py waits with asyncio.wait_for, which before Python 3.12 swallows a cancellation that meets the answer: an
        endless task would never end, and whoever waits for its end neither."""
        self._check_size(subject, payload, headers)
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        try:  # P12: a copy of the headers
            msg = await self._client.request(
                subject, payload, timeout=timeout, headers=dict(headers) if headers else None
            )
        except (nats.errors.BadSubjectError, nats.errors.BadHeaderError) as error:
            raise Refused(0, f"{subject!r}: {error}") from error
        if task and task.cancelling() > before:
            raise asyncio.CancelledError
        return msg

    def _check_size(self, subject: str, payload: bytes, headers: Headers | None) -> None:
        """P8: a message over the server's limit closes the connection for good; nats-py forgets to count the headers."""
        size = len(payload)
        if headers:
            size += 12 + sum(len(key.encode()) + len(value.encode()) + 4 for key, value in headers.items())
        if size > self._client.max_payload:
            limit = self._client.max_payload
            raise Refused(TOO_LARGE, f"a message of {size} bytes for {subject} is over the server's limit of {limit}")

    # -- health ------------------------------------------------------------------------------------------------------

    async def _watch_tasks(self) -> None:
        """P1, P2: an exception in nats-py's read loop ends it silently; the connection then looks alive and hears nothing.
        The same in its flusher: nothing is sent. In its reconnecting: nobody tries again, so this connection is lost."""
        while True:
            await asyncio.sleep(1)
            client = self._client
            if client.is_closed:
                continue
            if client.is_connected:
                if _ended(client._reading_task) or _ended(client._flusher_task):
                    self._logger.error("bus.reader_dead", action="reconnecting")
                    await client.force_reconnect()
            elif _ended(client._reconnection_task):
                self._logger.error("bus.reconnecting_dead", action="giving up")
                self.lost.set()

    async def _on_error(self, error: Exception) -> None:
        refused = bus_tls.refusal(error, self._tls)
        text = refused or without_password(str(error)) or type(error).__name__
        before, at = self._said
        if text != before or time.monotonic() - at >= SAY_AGAIN_S:
            self._said = (text, time.monotonic())
            self._logger.warning("bus.error", error=text)
        if self._client.is_connected:
            return
        if transport := self._client._transport:
            transport.close()  # type: ignore[no-untyped-call]  # nats-py leaves the socket of every failed attempt open
        if refused and self._hopeless and not self._hopeless.done():
            self._tls_refused += 1
            if self._tls_refused >= len(self._client._server_pool):  # each of them
                self._hopeless.set_result(refused)
        if "authorization violation" in text.lower():
            self._refused += 1
            self._refusal = text
            if self._refused == REFUSED_ATTEMPTS and self.connections:
                self._logger.error("bus.user_refused", user=self.user, action="giving up")
                self.lost.set()

    async def _on_disconnected(self) -> None:
        self._logger.warning("bus.disconnected")

    async def _on_reconnected(self) -> None:
        self.connections += 1
        self._refused = 0
        self.connected_at = time.monotonic()
        self._logger.info("bus.reconnected", connections=self.connections)
        for callback in self._on_reconnect:
            try:
                callback()
            except Exception:  # it would end nats-py's reconnecting, and keep the others from being told
                self._logger.exception("bus.callback_failed")

    async def _on_closed(self) -> None:
        self.lost.set()


def _ended(task: asyncio.Task[Any] | None) -> bool:
    return task is not None and task.done()
