"""An ASGI application on a real socket, as the runtime serves it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

from libs.common.runtime import Port, _Server
from tests.support.waiting import eventually


def free_socket() -> socket.socket:
    """Bound to a free port and kept: nobody else can get it before the server listens."""
    # With the protocol named, or asyncio leaves Nagle's algorithm on and every answer takes 40 ms.
    bound = socket.socket(proto=socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    return bound


def url_of(bound: socket.socket) -> str:
    return f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextlib.asynccontextmanager
async def served(app: Any, bound: socket.socket) -> AsyncIterator[str]:
    """`app`: or a service's Port, with its limits and rules."""
    server = _Server(app if isinstance(app, Port) else Port(app, "127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        await eventually(lambda: server.started or serving.done())
        yield url_of(bound)
    finally:
        server.should_exit = True
        await serving
        bound.close()
