"""A node behind a socket, in the current event loop: the helper for other tests, and what `main` serves.

async with running(NodeConfig(time_scale=50)) as sim:
    response = await client.post(f"{sim.url}/api/chat", json=...)
    await sim.until(lambda state: state.in_flight == 0)
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from libs.ollama_sim.app import App
from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.control import NodeState, state_of
from libs.ollama_sim.exchange import CONNECTION, Connection
from libs.ollama_sim.faults import Fault
from libs.ollama_sim.node import Node

_IDLE_S = 24 * 3600  # Go's server never closes an idle connection


class NodeProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which besides tells the application when the client leaves, even halfway."""

    client_side: Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the parent
        super().connection_made(transport)
        self.client_side = Connection(transport)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self.client_side}  # type: ignore[dict-item]  # our own extension

    def eof_received(self) -> bool | None:  # type: ignore[override]  # True keeps our side open, as asyncio defines it
        if self.cycle is None or self.cycle.response_complete:
            return None
        self.client_side.client_left(is_half_closed=True)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.client_side.client_left(is_half_closed=False)


class SimServer:
    """A running node: where it listens and what it is doing."""

    def __init__(self, node: Node, host: str, port: int, protocols: ServerState) -> None:
        self.node = node
        self.host = host
        self.port = port
        self._protocols = protocols

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def state(self) -> NodeState:
        return state_of(self.node)

    def set_faults(self, *faults: Fault) -> None:
        self.node.faults.replace(faults)

    async def until(self, is_so: Callable[[NodeState], Any], *, within: float = 5.0) -> NodeState:
        """Wait for a state of the node; raises TimeoutError when it does not come about in time."""
        async with asyncio.timeout(within):
            while not is_so(state := self.state):  # noqa: ASYNC110  # many kinds of change, none worth an event of its own
                await asyncio.sleep(0.002)
        return state

    def drop_connections(self) -> None:
        """Close every connection at once, in the middle of whatever goes on, as a stopping Ollama does."""
        for protocol in list(self._protocols.connections):
            protocol.transport.close()


@contextlib.asynccontextmanager
async def running(config: NodeConfig | None = None, *, port: int = 0) -> AsyncIterator[SimServer]:
    """Serve a node until the block ends; port 0 takes a free one. Open connections are closed at the end."""
    config = config or NodeConfig()
    node = Node(config)
    listener = _listen(config.host, port)
    # uvicorn's Server would add a clock and a slow shutdown; its protocol is all that is needed here.
    uvicorn_config = uvicorn.Config(
        App(node), log_config=None, access_log=False, lifespan="off", timeout_keep_alive=_IDLE_S
    )
    uvicorn_config.load()
    protocols = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: NodeProtocol(uvicorn_config, protocols, {}), sock=listener)
    address = listener.getsockname()
    sim = SimServer(node, address[0], address[1], protocols)
    loader = loop.create_task(node.scheduler.run(), name="loader")
    try:
        yield sim
    finally:
        server.close()
        sim.drop_connections()
        for protocol in list(protocols.connections):
            protocol.transport.abort()
        while protocols.tasks:
            await asyncio.wait(set(protocols.tasks), timeout=1)
            for task in set(protocols.tasks):
                task.cancel()
        loader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loader


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
