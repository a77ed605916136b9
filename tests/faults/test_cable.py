"""The harness' own network: what a frozen cable does, and what a killed one does, to a connection that runs through it."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.faults.fleet import Fleet
from tests.faults.plan import Deed, must_have, strikes
from tests.faults.processes import Process, Spec
from tests.faults.records import Book
from tests.support.waiting import eventually

HOST = "127.0.0.1"


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def running_cable(folder: Path) -> AsyncIterator[tuple[Process, int]]:
    """(the process, the port that leads to an echo)."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        fleet = Fleet(folder, Book(), http, servers=1)  # for its free ports; nothing of it is started
        cable = fleet.cables["router-1"]
        server = await asyncio.start_server(_echo, HOST, fleet.nats_ports["nats"][0])
        argv = (sys.executable, "-m", "tests.faults.cable", str(cable.ready_port), f"{cable.ports[0]}:{_port(server)}")
        process = Process(Spec(cable.name, argv, f"http://{HOST}:{cable.ready_port}/"), folder, Book(), http)
        process.start()
        try:
            async with asyncio.timeout(30):
                await process.ready.wait()
            yield process, cable.ports[0]
        finally:
            await process.end()
            server.close()


def _port(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_a_frozen_cable_holds_what_was_sent_and_closes_nothing(tmp_path: Path) -> None:
    async with asyncio.timeout(60), running_cable(tmp_path) as (cable, port), connected(port) as (reader, writer):
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"

        cut = asyncio.create_task(cable.freeze(3600))
        assert cable.pid
        stat = Path(f"/proc/{cable.pid}/stat")
        await eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
        try:
            writer.write(b"meanwhile")
            async with connected(port) as (other, _):  # the kernel still answers, and then nothing comes
                for silent in (reader, other):
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.2):
                            await silent.read(1)
        finally:
            cut.cancel()
            await asyncio.gather(cut, return_exceptions=True)

        assert await reader.readexactly(9) == b"meanwhile"


async def test_a_cable_that_ends_drops_its_connections_and_the_next_one_takes_new_ones(tmp_path: Path) -> None:
    async with asyncio.timeout(60), running_cable(tmp_path) as (cable, port):
        async with connected(port) as (reader, writer):
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"

            await cable.strike(signal.SIGKILL, down_for=0.1)

            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        async with connected(port) as (reader, writer):
            writer.write(b"x" * 1_000_000)
            assert await reader.readexactly(1_000_000) == b"x" * 1_000_000


async def test_servers_of_a_cluster_do_not_lead_a_client_around_its_cable(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as http:
        fleet = Fleet(tmp_path, Book(), http, servers=3)
        try:
            async with asyncio.timeout(60):
                await fleet.start_nats()
                for port in fleet.cables["gateway-1"].ports:
                    async with connected(port) as (reader, _):
                        told = json.loads((await reader.readline()).removeprefix(b"INFO "))
                    assert told["cluster"] == "faults"
                    assert not told.get("connect_urls")
        finally:
            await fleet.stop()


def test_a_plan_is_its_seed_and_cuts_as_long_as_it_may() -> None:
    names = {"worker": ["worker-n1", "worker-n2"], "gateway": ["gateway-1"], "router": ["router-1"]}

    def cuts(*, long: bool) -> list[float]:
        made = strikes(7, 600, from_s=0, until_s=600, names=names, longest_stop_s=12, long_cuts=long)
        assert made == strikes(7, 600, from_s=0, until_s=600, names=names, longest_stop_s=12, long_cuts=long)
        return [strike.seconds for strike in made if strike.deed is Deed.CUT]

    assert len(cuts(long=True)) > 100
    assert {seconds > 30 for seconds in cuts(long=True)} == {True, False}
    assert all(1 <= seconds <= 12 for seconds in cuts(long=False))
    targets = [strike.target for strike in must_have(7, names, at_s=1)]
    assert len(set(targets)) == len(targets) == 3
