"""Who is slow is ended in time, who is only far away or waits for us is not. The limits are short here, the waits long."""

import asyncio
import socket

import pytest

from libs.common.edge import metrics
from tests.edge.raw import PATIENT, QUICK, Client, answers, get, parsed, place, post
from tests.support.waiting import eventually

ESTABLISHED = 1  # of TCP, as TCP_INFO has it


async def _trickle(client: Client, data: bytes, every: float = 0.02) -> None:
    for byte in data:
        client.write(bytes([byte]))
        await asyncio.sleep(every)


async def test_headers_that_trickle_end_with_408() -> None:
    async with place(QUICK) as there, there.client() as client:
        trickling = asyncio.create_task(_trickle(client, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000))
        try:
            ((status, headers, body),) = parsed(await client.until_closed())
        finally:
            trickling.cancel()
        assert (status, headers["connection"]) == (408, "close")
        assert b'"request_timeout"' in body
        assert there.app.seen == []


async def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    """Browsers make connections ahead of need and would show an answer to nothing."""
    async with place(QUICK) as there, there.client() as client:
        assert await client.until_closed() == b""


async def test_empty_lines_keep_no_connection_open() -> None:
    async with place(QUICK) as there, there.client() as client:
        client.write(get())
        await client.reader.readuntil(b"{}")
        trickling = asyncio.create_task(_trickle(client, b"\r\n" * 10_000))
        try:
            assert answers(await client.until_closed()) == [408]
        finally:
            trickling.cancel()


async def test_the_second_request_has_a_time_of_its_own_and_the_first_ones_answer_is_whole() -> None:
    async with place(QUICK) as there, there.client() as client:
        client.write(get("/slow") + b"GET /second HTT")
        await eventually(lambda: there.app.seen)
        await asyncio.sleep(3 * QUICK.header_timeout)
        there.app.go.set()
        assert answers(await client.until_closed()) == [200]
        assert there.app.seen == [("GET", "/slow")]


async def test_a_body_that_stops_ends_with_408_and_the_application_hears_of_it() -> None:
    async with place(QUICK) as there, there.client() as client:
        client.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        ((status, _, body),) = parsed(await client.until_closed())
        assert status == 408
        assert b"nothing of it for 0.3 s" in body
        await eventually(lambda: there.app.left == 1)
        assert there.app.bodies == []


async def test_a_body_that_trickles_ends_for_its_rate() -> None:
    """Each byte comes in time, and it would take for ever."""
    limits = QUICK._replace(body_idle_timeout=2.0)
    async with place(limits) as there, there.client() as client:
        client.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        trickling = asyncio.create_task(_trickle(client, b"x" * 100_000))
        try:
            ((status, _, body),) = parsed(await client.until_closed())
        finally:
            trickling.cancel()
        assert status == 408
        assert b"less than 1000 bytes a second" in body


async def test_chunk_extensions_are_no_body() -> None:
    """They could come for ever at any rate."""
    async with place(QUICK) as there, there.client() as client:
        client.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;")
        flooding = asyncio.create_task(_flood(client, b"x" * 1000))
        try:
            assert answers(await client.until_closed()) == [408]
        finally:
            flooding.cancel()
        assert there.app.bodies == []


async def _flood(client: Client, data: bytes) -> None:
    while True:
        client.write(data)
        await asyncio.sleep(0.01)


async def test_all_of_a_body_has_a_time() -> None:
    limits = QUICK._replace(body_idle_timeout=60, body_timeout=0.3, min_rate=0.0)
    async with place(limits) as there, there.client() as client:
        client.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        flooding = asyncio.create_task(_flood(client, b"1\r\nx\r\n"))
        try:
            ((status, _, body),) = parsed(await client.until_closed())
        finally:
            flooding.cancel()
        assert status == 408
        assert b"not all of it in 0.3 s" in body


async def test_who_waits_for_us_is_not_late() -> None:
    """For `100 Continue`, and while nobody reads here."""
    async with place(QUICK._replace(min_rate=0.0)) as there, there.client() as client:
        client.write(b"POST /late HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        await eventually(lambda: there.app.seen)
        await asyncio.sleep(5 * QUICK.body_idle_timeout)
        there.app.go.set()
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.write(b"ab")
        assert b"200 OK" in await client.reader.readuntil(b"{}")
        assert there.app.bodies == [b"ab"]


async def test_who_could_not_send_because_nobody_read_is_not_late() -> None:
    body = b"x" * 20_000_000
    async with place(QUICK) as there, there.client() as client:
        client.write(post("/late", body))
        await eventually(lambda: there.app.seen)
        await asyncio.sleep(5 * QUICK.body_idle_timeout)
        there.app.go.set()
        assert b"200 OK" in await client.reader.readuntil(b"{}")
        assert [len(got) for got in there.app.bodies] == [len(body)]


async def test_a_long_answer_and_an_idle_connection_are_not_late() -> None:
    async with place(QUICK) as there, there.client() as client:
        client.write(get("/slow"))
        await eventually(lambda: there.app.seen)
        await asyncio.sleep(3 * QUICK.header_timeout)
        there.app.go.set()
        assert b"200 OK" in await client.reader.readuntil(b"{}")
        await asyncio.sleep(3 * QUICK.header_timeout)
        client.write(get("/again"))
        assert b"200 OK" in await client.reader.readuntil(b"{}")


async def test_a_reader_that_takes_nothing_of_a_large_answer_is_closed() -> None:
    """Also of one that is complete for the application: what lies in the buffer would stay for ever."""
    for header in ("Connection: close", "Connection: keep-alive"):
        async with place(QUICK) as there:
            there.app.answer = b"x" * 16_000_000
            reader = socket.create_connection(there.address)
            reader.setblocking(False)
            loop = asyncio.get_running_loop()
            try:
                await loop.sock_sendall(reader, get("/", header))
                await eventually(lambda: there.app.seen)
                # Without reading a byte: that the connection was reset, not closed behind what the kernel still has to send.
                await _no_longer_established(reader)
                with pytest.raises(ConnectionResetError):
                    await _all_there_is(loop, reader)
            finally:
                reader.close()


async def test_a_close_that_nobody_takes_ends_too() -> None:
    """With less left than what would hold the application up. How much the kernel takes is not known, so many sizes."""
    async with place(QUICK) as there:
        readers = []
        loop = asyncio.get_running_loop()
        try:
            for n in range(20):
                there.app.answer = b"x" * (100_000 + 30_000 * n)
                reader = socket.socket()
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                reader.setblocking(False)
                readers.append(reader)
                await loop.sock_connect(reader, there.address)
                await loop.sock_sendall(reader, get("/", "Connection: close"))
                await eventually(lambda: len(there.app.seen) == len(readers))
            await eventually(lambda: metrics.connections.labels("0")._value.get() == 0)
        finally:
            for reader in readers:
                reader.close()


async def _no_longer_established(reader: socket.socket) -> None:
    await eventually(lambda: reader.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED)


async def _all_there_is(loop: asyncio.AbstractEventLoop, reader: socket.socket) -> None:
    async with asyncio.timeout(20):
        while await loop.sock_recv(reader, 1 << 20):
            pass


async def test_a_reader_that_takes_enough_gets_all() -> None:
    limits = PATIENT._replace(stalled_timeout=0.5)
    async with place(limits) as there:
        there.app.answer = b"x" * 8_000_000
        async with there.client() as client:
            client.write(get("/", "Connection: close"))
            got = b""
            while data := await asyncio.wait_for(client.reader.read(100_000), 20):
                got += data
                await asyncio.sleep(0.02)
        assert got.endswith(b"x" * 8_000_000)


async def test_slow_readers_together_may_hold_so_much() -> None:
    limits = PATIENT._replace(max_waiting=30_000_000, header_timeout=1.0)
    async with place(limits) as there:
        there.app.answer = b"x" * 16_000_000
        loop, readers = asyncio.get_running_loop(), []
        try:
            for _ in range(4):
                reader = socket.create_connection(there.address)
                reader.setblocking(False)
                readers.append(reader)
                await loop.sock_sendall(reader, get())
            await eventually(lambda: len(there.app.seen) == 4)
            got = await asyncio.gather(*(_all_of(loop, reader) for reader in readers))
            whole = [size for size in got if size > 16_000_000]
            assert len(whole) in (1, 2), got
        finally:
            for reader in readers:
                reader.close()


async def _all_of(loop: asyncio.AbstractEventLoop, reader: socket.socket) -> int:
    await asyncio.sleep(3)
    got = 0
    async with asyncio.timeout(20):
        try:
            while got < 16_000_100 and (data := await loop.sock_recv(reader, 1 << 20)):
                got += len(data)
        except ConnectionResetError:
            pass
    return got


async def test_a_body_that_nobody_wants_is_not_read_for_ever() -> None:
    """The application has answered; the rest still has to come in time."""
    async with place(QUICK) as there, there.client() as client:
        client.write(b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert answers(await client.until_closed()) == [200]


async def test_a_request_that_comes_in_time_but_in_pieces_is_answered() -> None:
    limits = PATIENT._replace(header_timeout=20)
    async with place(limits) as there, there.client() as client:
        await _trickle(client, post("/", b"body"), every=0.001)
        assert b"200 OK" in await client.reader.readuntil(b"{}")
        assert there.app.bodies == [b"body"]
