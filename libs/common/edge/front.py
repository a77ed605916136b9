"""The check of each request's head, before any application sees it, and what every answer has. Plain ASGI.

Applications find `request_id` and `address` in `scope["state"]`; `scope["client"]` is the true client, behind a proxy too.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import structlog

from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, Fault
from libs.common.edge import metrics, origins
from libs.common.edge.addresses import ForwardedBy, Network, client_address
from libs.common.edge.hosts import Hosts, host_of
from libs.common.edge.request_ids import request_id_of

log = structlog.get_logger()

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

ABORT = "arriero.abort"  # among a scope's extensions: closes the connection at once. ASGI has no word for it

# What an answer has unless it says otherwise itself.
ALWAYS: Headers = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
# Names under which credentials are put into addresses elsewhere; addresses end up in histories, Referers and logs.
_IN_QUERY = re.compile(rb"(?:^|[&;])(access_token|api[_-]?key|x-api-key|client_secret)=", re.IGNORECASE)


class Rules(NamedTuple):
    """`settings`: the prefix of the variables that a refusal names, where there are such. `hosts` None: any."""

    settings: str = ""
    hosts: Hosts | None = None
    origins: frozenset[str] = frozenset()
    proxies: tuple[Network, ...] = ()
    forwarded_by: ForwardedBy = ForwardedBy.X_FORWARDED_FOR


class Head(NamedTuple):
    """What is looked at, each header with all its values."""

    host: list[bytes]
    origin: list[bytes]
    query: bytes


class Front:
    def __init__(self, app: Any, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        found = _looked_at(scope["headers"], self._rules.forwarded_by)
        request_id = request_id_of(found[b"x-request-id"], found[b"traceparent"])
        self._identify(scope, request_id, found)
        own: Headers = [(b"x-request-id", request_id.encode())]
        started = False
        head = Head(found[b"host"], found[b"origin"], scope.get("query_string", b""))
        fault = refusal(self._rules, head)
        if fault is None and head.origin and head.origin[0].decode("latin-1") in self._rules.origins:
            if scope["method"] == "OPTIONS" and found[b"access-control-request-method"]:
                asked = found[b"access-control-request-headers"]
                await _answer(send, 204, b"", [*origins.preflight(head.origin[0], asked), *own])
                return
            own += origins.allowed(head.origin[0])

        def sending(message: dict[str, Any]) -> Awaitable[None]:
            nonlocal started
            if not started:
                started = True
                message = message | {"headers": with_defaults(message.get("headers", []), own)}
            return send(message)

        if fault is not None:
            metrics.refused.labels(str(fault.code)).inc()
            log.debug("request.refused", code=str(fault.code))
            await _answer(sending, fault.meaning.status, encode(fault.problem()), [])
            return
        try:
            await self._app(scope, receive, sending)
        except Exception:
            if started:
                raise
            log.exception("request.failed")
            mistake = Fault(code=Code.INTERNAL, message="that is our mistake; please report it with the X-Request-Id")
            await _answer(sending, 500, encode(mistake.problem()), [])

    def _identify(self, scope: Scope, request_id: str, found: dict[bytes, list[bytes]]) -> None:
        rules, peer = self._rules, (scope.get("client") or ("", 0))[0]
        address = peer
        if rules.proxies:
            forwarded = [value.decode("latin-1") for value in found[rules.forwarded_by.encode()]]
            address = client_address(peer, forwarded, rules.forwarded_by, rules.proxies)
            if address != peer:
                scope["client"] = (address, 0)
        scope.setdefault("state", {}).update(request_id=request_id, address=address)
        structlog.contextvars.bind_contextvars(request_id=request_id)


def refusal(rules: Rules, head: Head) -> Fault | None:
    """Why a request is not let in, if so. Pure."""
    host = head.host[0].decode("latin-1") if head.host else ""
    named = host_of(host)
    if rules.hosts is not None and named is not None and not rules.hosts.allow(named):
        message = (
            f"{named} is not known as a name of this service; if it is one, "
            f"its operator adds it to {rules.settings}ALLOWED_HOSTS, comma separated"
        )
        return Fault(code=Code.MISDIRECTED, message=message)
    if head.origin and not _is_welcome(rules, head.origin, host):
        message = "pages of this origin may not use this service from a browser"
        if rules.settings:
            message += f"; if they shall, its operator adds the origin to {rules.settings}CORS_ORIGINS, comma separated"
        return Fault(code=Code.FORBIDDEN, message=message)
    if has_credential(head.query):
        message = (
            "a credential does not belong into an address, where it ends up in logs: "
            "send it as `Authorization: Bearer …`, and replace the one that was sent"
        )
        return Fault(code=Code.INVALID_REQUEST, message=message)
    return None


def has_credential(query: bytes) -> bool:
    return bool(_IN_QUERY.search(query) or (b"%" in query and _IN_QUERY.search(unquote_to_bytes(query))))


def _is_welcome(rules: Rules, given: list[bytes], host: str) -> bool:
    origin = given[0].decode("latin-1")
    return len(given) == 1 and (origin in rules.origins or origins.is_same(origin, host))


def with_defaults(headers: Headers, own: Headers) -> Headers:
    """An answer's headers and those that it lacks."""
    names = {name.lower() for name, _ in headers}
    return [*headers, *own, *(header for header in ALWAYS if header[0] not in names)]


def _looked_at(headers: Headers, forwarded_by: ForwardedBy) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {
        b"host": [],
        b"origin": [],
        b"x-request-id": [],
        b"traceparent": [],
        b"access-control-request-method": [],
        b"access-control-request-headers": [],
        forwarded_by.encode(): [],
    }
    for name, value in headers:
        values = found.get(name)
        if values is not None:
            values.append(value)
    return found


async def _answer(send: Send, status: int, body: bytes, headers: Headers) -> None:
    if status != 204:
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
