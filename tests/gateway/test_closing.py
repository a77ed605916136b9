"""A port that closes: who has just come may still ask, who comes later is refused at once and goes elsewhere."""

import asyncio

import pytest

from libs.common.runtime import Port, _Server
from services.gateway.http import Exchange, Receive, Scope, Send
from tests.support.http import free_socket
from tests.support.waiting import eventually

PATIENT_S = 20.0  # for what comes at once, with every core busy


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await Exchange(scope, receive, send).respond_json(200, {})


async def test_a_request_that_is_on_its_way_when_the_port_closes_is_answered() -> None:
    """A new process would have answered it; a reset looks to a proxy like a request that was perhaps carried out."""
    bound = free_socket()
    address = bound.getsockname()
    server = _Server(Port(app, "127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    await eventually(lambda: server.started)
    reader, writer = await asyncio.open_connection(*address)
    await eventually(lambda: server.server_state.connections)
    server.should_exit = True
    await eventually(lambda: not any(listening.is_serving() for listening in server.servers))
    with pytest.raises(ConnectionRefusedError):
        await eventually(lambda: asyncio.open_connection(*address))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" in await asyncio.wait_for(reader.read(), PATIENT_S)
    writer.close()
    await asyncio.wait_for(serving, PATIENT_S)


async def test_who_never_asks_does_not_hold_the_end_up() -> None:
    bound = free_socket()
    server = _Server(Port(app, "127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    await eventually(lambda: server.started)
    reader, writer = await asyncio.open_connection(*bound.getsockname())
    await eventually(lambda: server.server_state.connections)
    server.should_exit = True
    await asyncio.wait_for(serving, PATIENT_S)
    assert await asyncio.wait_for(reader.read(), PATIENT_S) == b""
    writer.close()
