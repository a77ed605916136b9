"""One request: where it goes, and where it never does (OWASP API7)."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook as Verifier

from services.gateway.webhooks import signing
from services.gateway.webhooks.sender import FORBIDDEN, MAX_ANSWER, Sender, _seconds
from tests.gateway.webhooks.receiver import Receiver, receiving
from tests.support.certificates import Authority

LOOPBACK = (ipaddress.ip_network("127.0.0.1/32"),)
SECRET = signing.new_secret()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


def port_of(receiver: Receiver) -> str:
    return receiver.url.rpartition(":")[2]


class Names:
    """A name server that gives each of its answers once, the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def test_the_specifications_own_sample() -> None:
    """standard-webhooks/spec: the signature of its example."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    made = signing.signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_a_name_is_asked_once_and_its_address_is_kept(receiver: Receiver) -> None:
    """Rebinding: the second answer would lead elsewhere, and nobody asks for it."""
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    outcome = await Sender(LOOPBACK, lookup=names).send(
        f"http://hooks.example.org:{port_of(receiver)}/x", SECRET, "msg_1", b"{}"
    )
    assert (outcome.status, names.asked) == (200, 1)
    assert receiver.got[0].headers["host"] == f"hooks.example.org:{port_of(receiver)}"
    Verifier(SECRET).verify(b"{}", receiver.got[0].headers)


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.2"], ["1.1.1.1", "127.0.0.2"], ["127.0.0.1", "10.0.0.1"], ["::1"], ["::ffff:127.0.0.2"], ["fe80::1%1"], []],
)  # fmt: skip
async def test_one_address_that_is_not_allowed_is_enough(receiver: Receiver, addresses: list[str]) -> None:
    sender = Sender(LOOPBACK, lookup=Names(addresses))
    for scheme in ("https", "http"):
        outcome = await sender.send(f"{scheme}://hooks.example.org:{port_of(receiver)}/", SECRET, "msg_1", b"{}")
        assert (outcome.status, outcome.reason) == (0, FORBIDDEN)
    assert receiver.got == []


async def test_an_address_is_checked_again_where_the_connection_is_made(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the checks before it ever let one through, such as one that comes without a look-up."""
    monkeypatch.setattr("services.gateway.webhooks.sender._Pinned.resolve", _says_loopback)
    outcome = await Sender().send(f"https://hooks.example.org:{port_of(receiver)}/", SECRET, "msg_1", b"{}")
    assert (outcome.status, receiver.got) == (0, [])
    assert outcome.reason == FORBIDDEN


async def _says_loopback(self: object, host: str, port: int = 0, family: int = 0) -> list[dict[str, object]]:
    return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 6, "flags": 0}]


async def test_plain_http_only_into_named_networks(receiver: Receiver) -> None:
    outcome = await Sender(LOOPBACK, lookup=Names(["1.1.1.1"])).send("http://example.org/", SECRET, "msg_1", b"{}")
    assert (outcome.status, outcome.reason) == (0, FORBIDDEN)
    outcome = await Sender().send(f"http://hooks.example.org:{port_of(receiver)}/", SECRET, "msg_1", b"{}")
    assert outcome.status == 0
    assert "https://" in outcome.reason


@pytest.mark.parametrize(
    ("certified", "delivered"), [("hooks.example.org", True), ("other.example.org", False), ("", False)]
)
async def test_the_certificate_must_be_the_names_not_the_addresses(
    tmp_path: Path, certified: str, delivered: bool
) -> None:
    authority = Authority(tmp_path)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(*authority.signed("receiver", host=certified))
    asked: list[str | None] = []
    serving.sni_callback = lambda connection, name, context: asked.append(name)
    got: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.readuntil(b"{}"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serving)
    async with server:
        port = server.sockets[0].getsockname()[1]
        url = f"https://hooks.example.org:{port}/x"
        trusting = Sender(
            LOOPBACK, lookup=Names(["127.0.0.1"]), ssl_context=ssl.create_default_context(cafile=authority.file)
        )
        outcome = await trusting.send(url, SECRET, "msg_1", b"{}")
        assert outcome.delivered is delivered
        assert asked == ["hooks.example.org"]
        if not delivered:
            assert outcome.reason == "its TLS certificate or handshake failed"
        stranger = await Sender(LOOPBACK, lookup=Names(["127.0.0.1"])).send(url, SECRET, "msg_1", b"{}")
        assert (stranger.status, stranger.reason) == (0, "its TLS certificate or handshake failed")
    assert len(got) == delivered


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_failures(receiver: Receiver, status: int) -> None:
    receiver.status, receiver.headers = status, [(b"location", f"{receiver.url}/elsewhere".encode())]
    outcome = await Sender(LOOPBACK).send(f"{receiver.url}/x", SECRET, "msg_1", b"{}")
    assert (outcome.status, outcome.delivered) == (status, False)
    assert [got.path for got in receiver.got] == ["/x"]


async def test_no_proxy_of_the_surroundings(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await Sender(LOOPBACK).send(receiver.url, SECRET, "msg_1", b"{}")).delivered


async def test_who_does_not_answer_is_left(receiver: Receiver) -> None:
    receiver.go.clear()
    outcome = await Sender(LOOPBACK).send(receiver.url, SECRET, "msg_1", b"{}", within=0.3)
    assert (outcome.status, outcome.reason) == (0, "no answer within 0.3 s")


async def test_who_is_not_there_or_speaks_no_http() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        assert (await Sender(LOOPBACK).send(url, SECRET, "msg_1", b"{}")).reason == "it cannot be connected to"

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        outcome = await Sender(LOOPBACK).send(f"http://127.0.0.1:{port}/", SECRET, "msg_1", b"{}")
        assert (outcome.status, outcome.reason) == (0, "it did not answer as HTTP does")
        outcome = await Sender(LOOPBACK).send(f"https://127.0.0.1:{port}/", SECRET, "msg_1", b"{}")
        assert outcome.status == 0


async def test_of_an_endless_answer_only_a_part_is_read() -> None:
    sent = 0
    ended = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nretry-after: 7\r\ncontent-length: 99999999\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 16384)
                sent += 16384
                await writer.drain()
        except OSError:
            ended.set()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        outcome = await Sender(LOOPBACK).send(f"http://127.0.0.1:{port}/", SECRET, "msg_1", b"{}")
        assert (outcome.status, outcome.retry_after) == (200, 7.0)
        await asyncio.wait_for(ended.wait(), 20)
    assert sent < 90_000_000
    assert MAX_ANSWER == 65536


def test_retry_after() -> None:
    assert [_seconds(text) for text in ("7", "0", "", "-1", "1e9", "999999999", "²", "Wed, 21 Oct 2026 07:28:00 GMT")] == [
        7.0, 0.0, None, None, None, None, None, None,
    ]  # fmt: skip
