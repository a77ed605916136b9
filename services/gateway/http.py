"""One HTTP exchange on plain ASGI: what our endpoints need of it and no more.

FastAPI's own streaming response costs 31 KB for each open stream, a raw one 10 KB (measured, DESIGN §4).
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl

from libs.common.contracts.clients import Principal
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, Fault, failed
from libs.common.edge.front import ABORT
from services.gateway.sessions import Session

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class Disconnected(Exception):
    """The client has gone; nothing more can be sent."""


class Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.raw_headers: Headers = scope["headers"]
        self.params: dict[str, str] = scope.get("path_params", {})
        self.query: dict[str, str] = dict(
            parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        )
        self.started = False
        self.sends_lines = False  # a stream of JSON lines, not of events
        self.status = 0
        self.closing = False  # the connection ends with this answer
        self.session: Session | None = None  # once it is known who asks
        # For the audit trail (services.gateway.witness):
        state = scope.get("state", {})
        self.address = str(state.get("address") or (scope.get("client") or ("",))[0])
        self.request_id = str(state.get("request_id", ""))
        self.principal: Principal | None = None
        self.fault: Fault | None = None  # what was answered, if it was one
        self.deed: str | None = None  # another action than the route's; empty: nothing was done
        self.target = ""
        self.failure = ""  # the code of a failure that came after the answer had begun
        self.told = False
        self.tell: Callable[[], None] = lambda: None
        self.limits: Callable[[], Headers] = list  # headers that say how much the caller has left
        self._abort: Callable[[], None] | None = scope.get("extensions", {}).get(ABORT)
        self._receive = receive
        self._send = send

    @property
    def is_revoked(self) -> bool:
        """Was this request ended because its credential does not count any more?"""
        return self.session is not None and self.session.lapsed is not None

    def header(self, name: str) -> str | None:
        wanted = name.lower().encode()
        for key, value in self.raw_headers:
            if key == wanted:
                return value.decode("latin-1")
        return None

    async def body(self, limit: int, count: Callable[[int], None] = lambda size: None) -> bytes:
        """The whole request body; `count` hears of each piece. Raises TOO_LARGE by what is counted, not by what Content-Length
        says, Disconnected (also when it does not come in time: the port looks after that), and what `count` raises."""
        declared = self.header("content-length")
        if declared is not None and declared.isascii() and declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        pieces, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            size += len(message.get("body", b""))
            if size > limit:
                raise _too_large(limit)
            count(len(message.get("body", b"")))
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(pieces)

    async def disconnected(self) -> None:
        """Returns when the client has gone. Unread parts of the body are thrown away."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def respond(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        await self._start(
            status, [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode()), *headers]
        )
        await self._send({"type": "http.response.body", "body": body if self.method != "HEAD" else b""})

    async def respond_json(self, status: int, value: Any, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        await self.respond(status, encode(value), headers=headers)

    async def start_events(self, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Begin a stream of server-sent events."""
        await self._start(
            200,
            [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"x-accel-buffering", b"no"),  # nginx would hold tokens back
                *headers,
            ],
        )

    async def start_lines(self) -> None:
        """Begin a stream of JSON lines."""
        self.sends_lines = True
        await self._start(
            200,
            [
                (b"content-type", b"application/x-ndjson"),
                (b"x-accel-buffering", b"no"),
            ],
        )

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def abort(self) -> None:
        """Close the connection without waiting for a client that takes nothing: what lies in the buffer would stay for ever."""
        if self._abort is not None:
            self._abort()
            await self.disconnected()

    async def _start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.started, self.status = True, status
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *headers,
                    *self.limits(),
                    *([(b"connection", b"close")] if self.closing else []),
                ],
            }
        )


def _too_large(limit: int) -> Exception:
    return failed(Code.TOO_LARGE, f"the body is larger than the {limit} bytes taken here; send less, or smaller images")
