"""Where a request ends is never in doubt: what could be read in two ways is 400, and nothing behind it is ever carried out."""

import pytest

from libs.common.edge import metrics
from tests.edge.raw import answers, get, parsed, place, post
from tests.support.waiting import eventually

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def _post(*headers: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([b"POST / " + version, b"Host: x", *headers, b"", body])


CHUNKED = b"Transfer-Encoding: chunked"
TWICE = {
    "length and chunked": _post(b"Content-Length: 6", CHUNKED, body=b"0\r\n\r\n"),
    "chunked and length": _post(CHUNKED, b"Content-Length: 4", body=b"0\r\n\r\n"),
    "two equal lengths": _post(b"Content-Length: 1", b"Content-Length: 1", body=b"x"),
    "two lengths": _post(b"Content-Length: 1", b"Content-Length: 60", body=b"x"),
    "a list of lengths": _post(b"Content-Length: 1, 1", body=b"x"),
    "length with a plus": _post(b"Content-Length: +1", body=b"x"),
    "negative length": _post(b"Content-Length: -1", body=b"x"),
    "hexadecimal length": _post(b"Content-Length: 0x1", body=b"x"),
    "length beyond 64 bits": _post(b"Content-Length: 18446744073709551617", body=b"x"),
    "empty length": _post(b"Content-Length:", body=b"x"),
    "length with a space before the colon": _post(b"Content-Length : 1", body=b"x"),
    "length behind an underscore and a second one": _post(b"Content-Length: 1", b"Content-Length\x00: 9", body=b"x"),
    "xchunked": _post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "identity": _post(b"Transfer-Encoding: identity", body=b"0\r\n\r\n"),
    "chunked, identity": _post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "gzip, chunked": _post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "chunked twice": _post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"),
    "chunked and gzip in two headers": _post(CHUNKED, b"Transfer-Encoding: gzip", body=b"0\r\n\r\n"),
    "quoted chunked": _post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"),
    "chunked with a parameter": _post(b"Transfer-Encoding: chunked;q=1", body=b"0\r\n\r\n"),
    "chunked behind a vertical tab": _post(b"Transfer-Encoding:\x0bchunked", body=b"0\r\n\r\n"),
    "chunked with a space before the colon": _post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "chunked on a folded line": _post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n"),
    "chunked in HTTP/1.0": _post(CHUNKED, body=b"0\r\n\r\n", version=b"HTTP/1.0"),
    "empty transfer-encoding": _post(b"Transfer-Encoding:", body=b"0\r\n\r\n"),
    "no chunk size": _post(CHUNKED, body=b"\r\nx\r\n0\r\n\r\n"),
    "words for a chunk size": _post(CHUNKED, body=b"zz\r\nx\r\n0\r\n\r\n"),
    "prefixed chunk size": _post(CHUNKED, body=b"0x1\r\nx\r\n0\r\n\r\n"),
    "negative chunk size": _post(CHUNKED, body=b"-1\r\nx\r\n0\r\n\r\n"),
    "chunk size beyond 64 bits": _post(CHUNKED, body=b"10000000000000001\r\nx\r\n0\r\n\r\n"),
    "chunk size with a space": _post(CHUNKED, body=b"1 \r\nx\r\n0\r\n\r\n"),
    "chunk longer than its size": _post(CHUNKED, body=b"1\r\nxy\r\n0\r\n\r\n"),
    "chunks with bare line feeds": _post(CHUNKED, body=b"1\nx\n0\n\n"),
    "chunk extension with a line feed": _post(CHUNKED, body=b"1;a\nb\r\nx\r\n0\r\n\r\n"),
    "bare line feeds": b"GET / HTTP/1.1\nHost: x\n\n",
    "one bare line feed": b"GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
    "bare carriage return": b"GET / HTTP/1.1\r\nHost: x\rX: y\r\n\r\n",
    "folded line": b"GET / HTTP/1.1\r\nHost: x\r\nX: y\r\n z\r\n\r\n",
    "space before the first header": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\nHost: x\r\nX\0: b\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost: x\r\nX\r\n\r\n",
    "no name": b"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
    "HTTP/0.9 by name": b"GET / HTTP/0.9\r\nHost: x\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "lower case version": b"GET / http/1.1\r\nHost: x\r\n\r\n",
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tab in the request line": b"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "space in the address": b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "raw bytes in the address": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    "a Host that is none": b"GET / HTTP/1.1\r\nHost: x/y@z\r\n\r\n",
    "empty Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "the address names another host": b"GET http://evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tunnel": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}  # fmt: skip


@pytest.mark.parametrize("name", TWICE)
async def test_what_is_no_proper_request_is_refused_and_ends_the_connection(name: str) -> None:
    async with place() as there:
        raw = await there.say(TWICE[name] + SMUGGLED)
        ((status, headers, body),) = parsed(raw)
        assert status == 400
        assert headers["connection"] == "close"
        assert headers["content-type"] == "application/problem+json"
        assert b'"invalid_request"' in body
        assert there.app.seen == []


@pytest.mark.parametrize("name", TWICE)
async def test_the_same_behind_a_proper_request_on_one_connection(name: str) -> None:
    """As a proxy sends it that shares a connection among clients. The proper one is answered, the other refused or dropped."""
    async with place() as there:
        raw = await there.say(get("/first") + TWICE[name] + SMUGGLED)
        assert answers(raw) in ([200], [200, 400])
        assert there.app.seen == [("GET", "/first")]


@pytest.mark.parametrize(
    "name", ["words for a chunk size", "chunk longer than its size", "chunks with bare line feeds"]
)
async def test_a_body_that_goes_wrong_later_ends_the_connection_too(name: str) -> None:
    head, _, body = TWICE[name].partition(b"\r\n\r\n")
    async with place() as there, there.client() as client:
        client.write(head + b"\r\n\r\n")
        await eventually(lambda: there.app.seen)
        client.write(body + SMUGGLED)
        assert answers(await client.until_closed()) == [400]
        assert there.app.seen == [("POST", "/")]
        assert there.app.bodies == []
        await eventually(lambda: there.app.left == 1)


async def test_rubbish_behind_a_request_that_is_being_answered_does_not_get_into_its_answer() -> None:
    async with place() as there, there.client() as client:
        client.write(get("/slow"))
        await eventually(lambda: there.app.seen)
        refused = metrics.refused.labels("invalid_request")._value
        before = refused.get()
        client.write(b"\x00\x01\x02\r\n\r\n" + SMUGGLED)
        await eventually(lambda: refused.get() > before)
        client.write(SMUGGLED)
        there.app.go.set()
        assert answers(await client.until_closed()) == [200]
        assert there.app.seen == [("GET", "/slow")]


@pytest.mark.parametrize("header", ["Connection: close", "Connection: Upgrade\r\nUpgrade: h2c"])
async def test_nothing_is_carried_out_behind_the_last_request_of_a_connection(header: str) -> None:
    async with place() as there:
        for first in (get("/", header), post("/", b"ab", header)):
            there.app.seen.clear()
            raw = await there.say(first + SMUGGLED)
            assert answers(raw) == [200]
            assert len(there.app.seen) == 1


async def test_what_arrives_after_an_upgrade_was_asked_for_is_not_read() -> None:
    async with place() as there, there.client() as client:
        client.write(get("/slow", "Connection: Upgrade", "Upgrade: websocket"))
        await eventually(lambda: there.app.seen)
        client.write(SMUGGLED)
        there.app.go.set()
        assert answers(await client.until_closed()) == [200]
        assert there.app.seen == [("GET", "/slow")]


async def test_trailers_are_no_headers() -> None:
    """Nobody has looked at them when the request is let in, and an application would see them come later."""
    body = b"1\r\nx\r\n0\r\nAuthorization: Bearer y\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    async with place() as there:
        raw = await there.say(_post(CHUNKED, b"Connection: close", body=body))
        assert answers(raw) == [200]
        assert there.app.bodies == [b"x"]
        assert [name for name, _ in there.app.scopes[0]["headers"]] == [b"host", b"transfer-encoding", b"connection"]


async def test_proper_requests_pass() -> None:
    chunked = _post(CHUNKED, body=b"1;a=b\r\nx\r\n0\r\n\r\n")
    old = b"GET /old HTTP/1.0\r\n\r\n"
    absolute = b"GET http://x:80/absolute HTTP/1.1\r\nHost: x:80\r\n\r\n"
    async with place() as there:
        raw = await there.say(b"\r\n" + get("/a") + post("/b", b"body") + chunked + absolute + get("/c") + old)
        assert answers(raw) == [200] * 6
        assert [path for _, path in there.app.seen] == ["/a", "/b", "/", "/absolute", "/c", "/old"]
        assert there.app.bodies == [b"body", b"x"]


async def test_a_heap_of_requests_at_once_ends_the_connection_and_not_the_memory() -> None:
    async with place() as there:
        there.app.go.set()
        raw = await there.say(get("/slow") * 1000)
        assert set(answers(raw)) == {200}
        assert len(there.app.seen) == len(answers(raw)) <= 17
