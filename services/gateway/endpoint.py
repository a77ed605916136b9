"""The frame around every route: who asks, may they, and every failure in the caller's dialect. Plain ASGI."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from libs.common.bus.failures import BusError
from libs.common.contracts.clients import Principal, Scope
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.faults import MEANING, Code, Failed, Fault
from libs.common.contracts.headers import IDEMPOTENCY_KEY
from services.gateway import metrics
from services.gateway.credentials import Credentials, require
from services.gateway.dialects import dialect_of, error_body, error_headers
from services.gateway.http import Disconnected, Exchange, Receive, Send
from services.gateway.http import Scope as HttpScope
from services.gateway.limits import Limiter
from services.gateway.route import RouteSpec
from services.gateway.sessions import Sessions
from services.gateway.warm_up import WarmUp
from services.gateway.witness import Witness

log = structlog.get_logger()

GOODBYE_S = 0.2  # a stream must be closed within a second of the revocation

# What the frame itself can answer on any route.
CODES = (
    Code.UNAUTHENTICATED,
    Code.FORBIDDEN,
    Code.INVALID_REQUEST,
    Code.RATE_LIMITED,
    Code.NOT_FOUND,
    Code.DRAINING,
    Code.UNAVAILABLE,
    Code.INTERNAL,
)


class Endpoint:
    """One route as an ASGI application."""

    def __init__(
        self,
        spec: RouteSpec,
        credentials: Credentials,
        sessions: Sessions,
        *,
        closing: Callable[[], bool] = lambda: False,
        warm_up: WarmUp | None = None,
        limiter: Limiter | None = None,
        witness: Witness | None = None,
    ) -> None:
        self.spec = spec
        self._credentials = credentials
        self._sessions = sessions
        self._closing = closing
        self._warm_up = warm_up
        self._limiter = limiter
        self._witness = witness

    async def __call__(self, scope: HttpScope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        if self._witness is not None:
            exchange.tell = partial(self._witness.saw, exchange, self.spec)
        exchange.closing = self._closing()  # a kept connection would be closed soon, perhaps under a request on its way
        began = time.monotonic()
        try:
            if self._warm_up is not None:
                await self._warm_up.wait()
            exchange.principal = principal = await self._credentials.principal(exchange.raw_headers, exchange.address)
            if self.spec.scope is not None:
                require(principal, self.spec.scope)
            with self._sessions.one(principal, self.spec.scope) as exchange.session:
                if self._limiter is not None and principal.accounts:
                    await self._count(self._limiter, exchange, principal)
                await self.spec.handler(exchange, principal)
        except Failed as error:
            await answer_fault(exchange, error.fault)
        except Disconnected:
            pass
        except asyncio.CancelledError:
            if exchange.session is not None and exchange.session.caught():
                await _answer_lapsed(exchange, exchange.session.lapsed or "")
                return
            # The drain is over and the server ends what still works: without an answer of ours it would send a bare 500.
            if exchange.started:
                raise  # the connection breaks, so that the client sees that something is missing
            message = "this gateway is shutting down; another one takes the request"
            await answer_fault(exchange, Fault(code=Code.DRAINING, message=message, retry_after_s=1))
        except BusError as error:
            log.warning("request.bus_failed", route=self.spec.path, error=str(error))
            await answer_fault(exchange, Fault(code=Code.UNAVAILABLE, message="the queue does not answer; try again"))
        except Malformed as error:
            log.error("request.record_unreadable", route=self.spec.path, error=str(error))
            await answer_fault(exchange, Fault(code=Code.INTERNAL, message="a stored record cannot be read"))
        except Exception:
            log.exception("request.failed", route=self.spec.path)
            await answer_fault(exchange, Fault(code=Code.INTERNAL, message="that is our mistake; please report it"))
        finally:
            exchange.tell()
            metrics.requests.labels(self.spec.path, str(exchange.status or 499)).inc()
            log.debug(
                "request.answered", route=self.spec.path, status=exchange.status, seconds=time.monotonic() - began
            )

    async def _count(self, limiter: Limiter, exchange: Exchange, principal: Principal) -> None:
        """Raises Failed: RATE_LIMITED."""
        exchange.limits = lambda: limiter.headers(principal)
        if self.spec.scope is Scope.JOBS_CANCEL:
            return  # it takes work away: nobody is kept from it
        keyed = exchange.header(IDEMPOTENCY_KEY) if exchange.method == "POST" else None
        await limiter.admit(principal, repeats=(exchange.path, keyed) if keyed else None)


async def _answer_lapsed(exchange: Exchange, reason: str) -> None:
    """Soon, also when the client reads nothing: its connection is cut then."""
    exchange.closing = True
    fault = Fault(code=Code.UNAUTHENTICATED, message=f"The request was ended: {reason}.")
    try:
        async with asyncio.timeout(GOODBYE_S):
            await answer_fault(exchange, fault)
    except TimeoutError:
        await exchange.abort()
    except (RuntimeError, OSError):  # its answer was complete already, or the client is gone
        pass


async def answer_fault(exchange: Exchange, fault: Fault, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """As a response if nothing was sent yet; in a stream that has begun, as its last event."""
    exchange.fault = fault
    content_type, body = error_body(fault, dialect_of(exchange.path))
    if exchange.started:
        await exchange.write((b"%b\n" if exchange.sends_lines else b"event: error\ndata: %b\n\n") % encode(body))
        await exchange.finish()
        return
    await exchange.respond(MEANING[fault.code].status, encode(body), content_type, [*error_headers(fault), *headers])


async def nothing_here(exchange: Exchange, *, allowed: Sequence[str] = ()) -> None:
    """`allowed`: the methods of a path that is known."""
    if not allowed:
        await answer_fault(exchange, Fault(code=Code.NOT_FOUND, message=f"there is nothing at {exchange.path[:200]}"))
        return
    message = f"{exchange.path[:200]} does not take {exchange.method[:20]}, but {', '.join(allowed)}"
    fault = Fault(code=Code.METHOD_NOT_ALLOWED, message=message)
    await answer_fault(exchange, fault, [(b"allow", ", ".join(allowed).encode())])
