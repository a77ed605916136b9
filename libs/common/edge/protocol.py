"""uvicorn's HTTP connection with limits: on time, size and number; and strict about where a request ends.

Who is too slow, too large or not HTTP gets a plain answer (problem+json) and the connection ends. After a mistake in the
framing nothing of that connection is read any more, so what might be a smuggled request is never one.
"""

import contextlib
import fcntl
import re
import socket
import struct
import termios
from enum import Enum, auto
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from libs.common.contracts.faults import Code, Fault
from libs.common.edge import metrics
from libs.common.edge.front import ABORT
from libs.common.edge.hosts import host_of
from libs.common.edge.limits import Crowded, Late, body_is_late, head_is_late, is_stalled
from libs.common.edge.plain import crowded_app, plain
from libs.common.edge.table import ConnectionTable

# What the kernel takes off our hands without having sent it: more of it would be memory that no limit of ours sees.
NOTSENT_LOWAT, NOTSENT_BYTES = getattr(socket, "TCP_NOTSENT_LOWAT", 25), 128 * 1024
LINGER_BODY_S = 30.0  # for the rest of a body whose request has been answered; nginx's lingering_time
_LENGTH = re.compile(rb"[0-9]{1,18}")


class Reading(Enum):
    IDLE = auto()  # between two requests: uvicorn's own clock runs
    HEAD = auto()
    BODY = auto()
    ANSWERING = auto()  # all of it has come
    LINGER = auto()  # refused; what still comes is thrown away


class _Refuse(Exception):
    """Ends the parser in the middle of its work."""


class EdgeProtocol(HttpToolsProtocol):
    def __init__(self, *args: Any, table: ConnectionTable, **more: Any) -> None:
        super().__init__(*args, **more)
        self._table = table
        self._limits = table.limits
        self._address = ""
        self._reading = Reading.HEAD
        self._began = self._last = self._looked = 0.0  # of the head or body that is being read
        self._size = 0
        self._fields = 0
        self._blocked: tuple[float, int] | None = None  # since when, and how much then waited for the client
        self._refusal: Fault | None = None
        self._answering: RequestResponseCycle | None = None
        self._has_read = False
        self._last_data = 0.0
        self._head = 0

    # -- the connection

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._began = self._looked = self._last_data = self.loop.time()
        with contextlib.suppress(OSError, AttributeError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT, NOTSENT_BYTES)
        crowded, alone = self._table.enter(self._address)
        if crowded is Crowded.CLOSED:
            self.drop("connections")
            return
        if crowded:
            self.app = crowded_app(alone)
        self._table.look_at(self, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._table.leave(self, self._address)
        for cycle, _ in self.pipeline:
            cycle.disconnected = True

    def data_received(self, data: bytes) -> None:
        if self._reading is Reading.LINGER:
            return
        self._unset_keepalive_if_required()
        self._last_data = self.loop.time()
        if self._reading is Reading.IDLE:
            self._begin_head()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._read_no_more()  # what follows would be in another protocol; the request itself is answered in this one
        except httptools.HttpParserError:
            self._refuse(self._refusal or Fault(code=Code.INVALID_REQUEST, message="this is not valid HTTP/1.1"))
            return
        if self._reading is Reading.HEAD:
            self._has_read = True
            self._size += len(data)
            if self._size > self._limits.max_header:
                self._refuse(self._too_large())

    # -- the parser's callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]  # nothing that travels
        if self._reading is not Reading.HEAD:
            self._begin_head()
        self._fields = self._head = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._limits.max_target:
            longest = f"an address may have {self._limits.max_target} bytes here"
            self._stop(Fault(code=Code.URI_TOO_LONG, message=longest))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._head += len(name) + len(value) + 4
        if self._fields > self._limits.max_fields or self._head > self._limits.max_header:
            self._stop(self._too_large())
        if self._reading is Reading.HEAD:  # trailers are no headers: nobody has checked them
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if (problem := self._wrong()) is not None:
            self._stop(Fault(code=Code.INVALID_REQUEST, message=problem))
        if len(self.pipeline) >= self._limits.max_pipelined:
            self._stop(
                Fault(code=Code.OVERLOADED, message="too many requests on this connection wait for their answers")
            )
        super().on_headers_complete()
        self._reading = Reading.BODY
        self._began = self._last = self._last_data
        self._size = 0

    def on_body(self, body: bytes) -> None:
        self._last = self._last_data
        self._size += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._reading = Reading.IDLE if self.cycle.response_complete else Reading.ANSWERING

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            if self._unsent():
                self._block()
        elif self.cycle.response_complete:
            if self._reading is Reading.ANSWERING:
                self._reading = Reading.IDLE
            elif self._reading is Reading.BODY:  # answered before all of it came
                self._table.look_at(self, self.loop)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle

        async def unless_refused(scope: Any, receive: Any, send: Any) -> None:
            if not cycle.disconnected:
                await app(scope, receive, send)

        super()._start_asgi_task(cycle, unless_refused)

    # -- the client takes too little

    def pause_writing(self) -> None:
        super().pause_writing()
        self._block()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._blocked = None

    def timeout_keep_alive_handler(self) -> None:
        """Also for who never took the last answer."""
        if self._unsent():
            self.drop("stalled")
        else:
            super().timeout_keep_alive_handler()

    def unsent(self) -> tuple[float, int]:
        return (self._blocked[0], self._unsent()) if self._blocked else (0.0, 0)

    def drop(self, reason: str) -> None:
        """With a reset: after an ordinary close the kernel would go on offering the rest to a client that does not take it."""
        metrics.refused.labels(reason).inc()
        with contextlib.suppress(OSError, AttributeError):
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self.transport.abort()

    # -- looked at now and then

    def look(self, now: float) -> bool:
        since_last, self._looked = now - max(self._looked, self._began), now
        if self._blocked is not None and self._look_at_writing(now):
            return False
        match self._reading:
            case Reading.LINGER:
                if now - self._began >= self._limits.linger:
                    self.transport.abort()
                return not self.transport.is_closing()
            case _ if self.transport.is_closing():
                return self._blocked is not None
            case Reading.HEAD | Reading.BODY if self.flow.read_paused or self._is_asked_to_wait():
                self._began += max(0.0, since_last)
                self._last = now
            case Reading.HEAD:
                if head_is_late(self._limits, self._began, now):
                    self._end_head()
            case Reading.BODY:
                self._look_at_body(now)
            case _:
                return self._blocked is not None
        return True

    def _look_at_writing(self, now: float) -> bool:
        assert self._blocked
        since, waited = self._blocked
        stalled = is_stalled(self._limits, waited, waits := self._outstanding(), since, now)
        if stalled:
            self.drop("stalled")
        elif stalled is not None:
            self._blocked = (now, waits)
        return bool(stalled)

    def _look_at_body(self, now: float) -> None:
        if self.cycle.response_complete and now - self._began >= LINGER_BODY_S:
            self._close()
            return
        late = body_is_late(self._limits, self._began, self._last, self._size, now)
        if late is None:
            return
        said = {
            Late.BODY_IDLE: f"nothing of it for {self._limits.body_idle_timeout:g} s",
            Late.BODY_SLOW: f"less than {self._limits.min_rate:g} bytes a second",
            Late.BODY_LONG: f"not all of it in {self._limits.body_timeout:g} s",
        }
        self._refuse(Fault(code=Code.REQUEST_TIMEOUT, message=f"the body did not come: {said[late]}"), late)

    def _end_head(self) -> None:
        if self._has_read:
            late = f"the headers did not come within {self._limits.header_timeout:g} s"
            self._refuse(Fault(code=Code.REQUEST_TIMEOUT, message=late), Late.HEAD)
        else:  # a connection made ahead of need
            self._close()

    def _is_asked_to_wait(self) -> bool:
        """It waits for our word (`Expect: 100-continue`), which comes when the application reads."""
        return self._reading is Reading.BODY and self.cycle.waiting_for_100_continue

    # -- refusing

    def _begin_head(self) -> None:
        self._reading = Reading.HEAD
        self._began = self._last_data
        self._size = 0
        self._has_read = False
        self._table.look_at(self, self.loop)

    def _wrong(self) -> str | None:
        """What the parser lets through, and others might read in another way."""
        version, hosts = self.parser.get_http_version(), []
        for name, value in self.headers:
            if name == b"host":
                hosts.append(value)
            elif name == b"transfer-encoding" and (value.strip().lower() != b"chunked" or version == "1.0"):
                return "Transfer-Encoding can only be chunked here, in HTTP/1.1"
            elif name == b"content-length" and not _LENGTH.fullmatch(value):
                return "Content-Length is not a number"
        if version not in ("1.0", "1.1"):
            return "this is not HTTP/1.1 or 1.0"
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            return "there must be one Host header"
        host = hosts[0].decode("latin-1") if hosts else ""
        if hosts and host_of(host) is None:
            return "the Host header is neither a name nor an address"
        if self.parser.get_method() == b"CONNECT":
            return "this is no proxy"
        if not self.url.startswith((b"/", b"*")):
            named = self.url.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0]
            if named.decode("latin-1").lower() != host.lower():  # RFC 9112 §3.2.2: the address would count, not Host
                return "the address names another host than the Host header"
        return None

    def _too_large(self) -> Fault:
        limits = self._limits
        message = f"headers may have {limits.max_header} bytes and {limits.max_fields} fields here"
        return Fault(code=Code.HEADERS_TOO_LARGE, message=message)

    def _stop(self, fault: Fault) -> None:
        self._refusal = fault
        raise _Refuse

    def _refuse(self, fault: Fault, reason: str = "") -> None:
        """Answer what is being read, if no other answer is under way, and end the connection."""
        metrics.refused.labels(reason or str(fault.code)).inc()
        reads_body = self._reading is Reading.BODY
        cycle: RequestResponseCycle | None = self.cycle
        if reads_body and cycle is not None and cycle.response_complete:
            self._close()
            return
        if reads_body and self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()  # it is broken and has not begun
            cycle.disconnected = True
            reads_body, cycle = False, self._answering
        if cycle is not None and not cycle.response_complete:
            if not reads_body:
                self._read_no_more()
                return
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self._close()
                return
        if not self.transport.is_closing():
            self.transport.write(plain(fault, self.server_state.default_headers))
            self._linger()

    def _read_no_more(self) -> None:
        """What was asked before is answered, and then the connection ends."""
        self._reading = Reading.ANSWERING
        self.parser = _Deaf()  # type: ignore[assignment]
        last = self.pipeline[0][0] if self.pipeline else self._answering
        if last is None or last.response_complete:
            self._close()
        else:
            last.keep_alive = False

    def _linger(self) -> None:
        self._reading = Reading.LINGER
        self._began = self.loop.time()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._table.look_at(self, self.loop)

    def _close(self) -> None:
        self.transport.close()
        if self._unsent():
            self._block()

    def _block(self) -> None:
        if self._blocked is None:
            self._blocked = (self.loop.time(), self._outstanding())
        self._table.look_at(self, self.loop)

    def _unsent(self) -> int:
        return self.transport.get_write_buffer_size()

    def _outstanding(self) -> int:
        """Bytes that the client has not taken: here, and in the kernel, where it is seen earlier that it takes some."""
        queued = 0
        with contextlib.suppress(OSError, AttributeError):
            found = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, b"\0" * 4)
            (queued,) = struct.unpack("i", found)
        return self._unsent() + queued


class _Deaf:
    """In the place of a parser that must not read on."""

    def feed_data(self, data: bytes) -> None:
        pass

    def should_upgrade(self) -> bool:
        return False
