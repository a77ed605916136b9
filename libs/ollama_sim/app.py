"""The ASGI application: routes, refusals, and what happens when the client leaves."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable

from libs.ollama_sim import control, library, pulling
from libs.ollama_sim.chat import chat
from libs.ollama_sim.embed import embed, embeddings
from libs.ollama_sim.exchange import JSON_UTF8, TEXT, TEXT_UTF8, Exchange, Receive, Scope, Send
from libs.ollama_sim.faults import INFERENCE_ROUTES, FaultKind, Phase
from libs.ollama_sim.generate import generate
from libs.ollama_sim.node import Node
from libs.ollama_sim.refusals import Refusal
from libs.ollama_sim.requests import BadRequest
from libs.ollama_sim.wire import encode

Handler = Callable[[Node, Exchange, bytes], Awaitable[None]]

_PROXY_PAGE = b"<html><head><title>Welcome</title></head><body><h1>It works</h1></body></html>\n"
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


async def _root(node: Node, exchange: Exchange, body: bytes) -> None:
    await exchange.whole(b"Ollama is running", TEXT_UTF8)


async def _version(node: Node, exchange: Exchange, body: bytes) -> None:
    await exchange.json({"version": node.config.version})


async def _status(node: Node, exchange: Exchange, body: bytes) -> None:
    await exchange.json({"cloud": {"disabled": True, "source": "env"}})


ROUTES: dict[str, dict[str, Handler]] = {
    "/": {"GET": _root, "HEAD": _root},
    "/api/version": {"GET": _version, "HEAD": _version},
    "/api/status": {"GET": _status},
    "/api/tags": {"GET": library.tags, "HEAD": library.tags},
    "/api/ps": {"GET": library.ps},
    "/api/show": {"POST": library.show},
    "/api/chat": {"POST": chat},
    "/api/generate": {"POST": generate},
    "/api/embed": {"POST": embed},
    "/api/embeddings": {"POST": embeddings},
    "/api/pull": {"POST": pulling.pull},
    "/api/copy": {"POST": library.copy},
    "/api/delete": {"DELETE": library.delete},
    "/sim/state": {"GET": control.state},
    "/sim/faults": {"POST": control.faults},
}


class App:
    """One node behind ASGI; `run` of its scheduler belongs to whoever serves it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._checks_host = _is_loopback(node.config.host)
        self._own_name = socket.gethostname().lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"cannot serve {scope['type']}")
        exchange = Exchange(scope, receive, send)
        counters = self.node.counters
        task = asyncio.current_task()
        is_inference = exchange.path in INFERENCE_ROUTES
        counters.in_flight += is_inference
        exchange.connection.attach(task)
        try:
            await self._answer(exchange)
        except asyncio.CancelledError:
            if not exchange.connection.is_gone or task is None:
                raise
            task.uncancel()
            counters.cancelled += 1
            await self._end_half_closed(exchange)
        finally:
            exchange.connection.attach(None)
            counters.in_flight -= is_inference

    async def _answer(self, exchange: Exchange) -> None:
        if self._checks_host and not _is_local(exchange.header(b"host"), self._own_name):
            await exchange.whole(b"", None, 403)
            return
        methods = ROUTES.get(exchange.path)
        if methods is None:
            await exchange.whole(b"404 page not found", TEXT, 404)
            return
        handler = methods.get(exchange.method)
        if handler is None:
            allow = (b"Allow", ", ".join(methods).encode())
            await exchange.whole(b"405 method not allowed", TEXT, 405, allow)
            return
        body = await exchange.body()
        self.node.counters.count_request(exchange.path)
        try:
            if not await self._suffer(exchange, body):
                await handler(self.node, exchange, body)
        except BadRequest as exc:
            await exchange.error(str(exc), 400)
        except Refusal as refusal:
            await _refuse(exchange, refusal)

    async def _suffer(self, exchange: Exchange, body: bytes) -> bool:
        """Whether a fault has answered in the handler's place."""
        if not self.node.faults.armed:
            return False
        model = control.model_in(body) if exchange.path in INFERENCE_ROUTES else ""
        fault = self.node.faults.draw(Phase.REQUEST, exchange.path, model)
        if fault is None:
            return False
        self.node.counters.failed += 1
        match fault.kind:
            case FaultKind.BUSY:
                text = "server busy, please try again.  maximum pending requests exceeded"
                await exchange.whole(encode({"error": text}), JSON_UTF8, 503)
            case FaultKind.OPTION_ERROR:
                await exchange.error('option "num_ctx" must be of type integer', 500)
            case FaultKind.HTML:
                await exchange.whole(_PROXY_PAGE, b"text/html; charset=utf-8")
            case FaultKind.EMPTY:
                await exchange.whole(b"", None)
            case _:
                await asyncio.Event().wait()  # until the client leaves
        return True

    async def _end_half_closed(self, exchange: Exchange) -> None:
        """A client that closed only its sending side is cancelled too, but still gets a proper end."""
        if not exchange.connection.is_half_closed:
            return
        if exchange.has_begun:
            await exchange.end()
        await exchange.connection.close()


async def _refuse(exchange: Exchange, refusal: Refusal) -> None:
    if refusal.is_late:
        await exchange.late_error(refusal.text, refusal.status)
    else:
        await exchange.error(refusal.text, refusal.status)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_local(host: str, own_name: str) -> bool:
    """Ollama's guard against foreign names that resolve to this machine."""
    name = host.rsplit(":", 1)[0].strip("[]").lower() if not host.endswith("]") else host.strip("[]").lower()
    if not name or name in {"localhost", own_name} or name.endswith(_LOCAL_SUFFIXES):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_private or address.is_loopback or address.is_unspecified
