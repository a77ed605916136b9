"""The pure rules: hosts, origins, addresses, request ids, credentials in addresses."""

import pytest

from libs.common.contracts.faults import Code
from libs.common.credentials import api_keys
from libs.common.edge.addresses import ForwardedBy, client_address, networks
from libs.common.edge.front import Head, Rules, has_credential, refusal
from libs.common.edge.hosts import Hosts, host_of, hosts
from libs.common.edge.origins import is_origin, is_same
from libs.common.edge.request_ids import request_id_of

# -- hosts


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("gpu-box", "gpu-box"), ("GPU-Box:8700", "gpu-box"), ("llm.example.org.", "llm.example.org"),
        ("127.0.0.1:8700", "127.0.0.1"), ("[::1]:8700", "[::1]"), ("[::1]", "[::1]"), ("job_api", "job_api"), ("x:", "x"),
        ("", None), (":80", None), ("x/y", None), ("a@b", None), ("a b", None), ("x:y", None), ("a..b", None),
        ("[::g]", None), ("::1", None), ("-x", None), ("x" * 254, None), ("é.example", None), ("x:123456", None),
        ("evil.example,x", None),
    ],
)  # fmt: skip
def test_the_host_of_an_authority(authority: str, host: str | None) -> None:
    assert host_of(authority) == host


@pytest.mark.parametrize(
    "host",
    ["localhost", "gpu-box", "gateway", "127.0.0.1", "192.168.1.7", "[::1]", "[fd00::1]", "app.localhost", "gpu-box.local",
     "hub.internal", "gateway.arriero.svc.cluster.local", "nas.home.arpa"],
)  # fmt: skip
def test_names_that_no_stranger_can_own_need_no_setting(host: str) -> None:
    assert hosts([]).allow(host)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "internal.example", "xlocal.example", "gpu-box.lan",
     "evillocal.com", "1.2.3.4.5", "home.arpa.example"],
)  # fmt: skip
def test_names_that_a_stranger_can_own_are_foreign(host: str) -> None:
    assert not hosts([]).allow(host)


def test_listed_names_are_own_names() -> None:
    own = hosts(["llm.example.org", "*.apps.example.org"])
    assert own.allow("llm.example.org")
    assert own.allow("a.apps.example.org")
    assert own.allow("b.a.apps.example.org")
    assert not own.allow("apps.example.org")
    assert not own.allow("x.llm.example.org")
    assert not own.allow("evilapps.example.org")
    assert Hosts(frozenset(["*"])).allow("evil.example")


# -- origins


@pytest.mark.parametrize(
    ("origin", "good"),
    [
        ("https://chat.example.org", True), ("http://localhost:3000", True), ("chrome-extension://abcdef", True),
        ("http://[::1]:8080", True), ("*", False), ("null", False), ("https://chat.example.org/", False),
        ("chat.example.org", False), ("https://*.example.org", False), ("https://a b", False), ("", False),
    ],
)  # fmt: skip
def test_what_is_an_origin(origin: str, good: bool) -> None:
    assert is_origin(origin) is good


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://gpu-box:8700", "gpu-box:8700", True), ("https://llm.example.org", "llm.example.org", True),
        ("https://llm.example.org", "llm.example.org:443", True), ("http://gpu-box:3000", "gpu-box:8700", False),
        ("http://evil.example", "gpu-box:8700", False), ("null", "gpu-box", False), ("file://", "gpu-box", False),
        ("chrome-extension://gpu-box", "gpu-box", False), ("http://", "", False),
        ("http://gpu-box:8700/x", "gpu-box:8700", False),
    ],
)  # fmt: skip
def test_a_page_from_here(origin: str, host: str, same: bool) -> None:
    assert is_same(origin, host) is same


def test_what_is_refused() -> None:
    rules = Rules("ARRIERO_GATEWAY_", hosts([]), frozenset(["https://chat.example.org"]))

    def code(host: bytes = b"gpu-box:8700", origin: tuple[bytes, ...] = (), query: bytes = b"") -> Code | None:
        fault = refusal(rules, Head([host], [*origin], query))
        return fault.code if fault else None

    assert code() is None
    assert code(host=b"evil.example") is Code.MISDIRECTED
    assert code(origin=(b"https://chat.example.org",)) is None
    assert code(origin=(b"http://gpu-box:8700",)) is None
    assert code(origin=(b"http://evil.example",)) is Code.FORBIDDEN
    assert code(origin=(b"null",)) is Code.FORBIDDEN
    assert code(origin=(b"",)) is Code.FORBIDDEN
    assert code(origin=(b"https://chat.example.org", b"https://chat.example.org")) is Code.FORBIDDEN
    assert code(host=b"evil.example", origin=(b"http://evil.example",)) is Code.MISDIRECTED, "rebinding"
    assert code(query=b"access_token=x") is Code.INVALID_REQUEST
    fault = refusal(rules, Head([b"evil.example"], [], b""))
    assert fault is not None
    assert "ARRIERO_GATEWAY_ALLOWED_HOSTS" in fault.message


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (b"access_token=a", True), (b"x=1&api_key=a", True), (b"x=1;apikey=a", True), (b"API-Key=a", True),
        (b"client_secret=a", True), (b"%61ccess_token=a", True), (b"access%5Ftoken=a", True),
        (b"after=1.2&wait=3", False), (b"cursor=access_token", False), (b"my_access_token=1", False), (b"", False),
    ],
)  # fmt: skip
def test_credentials_in_a_query(query: bytes, found: bool) -> None:
    assert has_credential(query) is found


# -- addresses

PROXIES = networks(["10.0.0.0/8", "fd00::/8"])
XFF, FORWARDED = ForwardedBy.X_FORWARDED_FOR, ForwardedBy.FORWARDED


@pytest.mark.parametrize(
    ("peer", "forwarded", "by", "address"),
    [
        ("203.0.113.9", ["1.1.1.1"], XFF, "203.0.113.9"),  # anybody can say that
        ("10.0.0.1", [], XFF, "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], XFF, "203.0.113.9"),
        ("10.0.0.1", ["6.6.6.6, 203.0.113.9"], XFF, "203.0.113.9"),  # what stands before is the client's own word
        ("10.0.0.1", ["6.6.6.6", "203.0.113.9, 10.0.0.2"], XFF, "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], XFF, "10.0.0.3"),
        ("10.0.0.1", ["203.0.113.9, rubbish, 10.0.0.2"], XFF, "10.0.0.2"),
        ("10.0.0.1", ["203.0.113.9, "], XFF, "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9:4711"], XFF, "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], XFF, "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], XFF, "2001:db8::1"),
        ("10.0.0.1", ["::ffff:203.0.113.9"], XFF, "203.0.113.9"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], XFF, "203.0.113.9"),
        ("fd00::1", ["203.0.113.9"], XFF, "203.0.113.9"),
        ("", ["203.0.113.9"], XFF, ""),
        ("10.0.0.1", ['for=203.0.113.9;proto=https;by=10.0.0.1'], FORWARDED, "203.0.113.9"),
        ("10.0.0.1", ['for=6.6.6.6, For="[2001:db8::1]:4711"'], FORWARDED, "2001:db8::1"),
        ("10.0.0.1", ["for=203.0.113.9, for=unknown"], FORWARDED, "10.0.0.1"),
        ("10.0.0.1", ["for=203.0.113.9, for=_hidden"], FORWARDED, "10.0.0.1"),
        ("10.0.0.1", ["proto=https;for=203.0.113.9"], FORWARDED, "203.0.113.9"),
        ("10.0.0.1", ['for="6.6.6.6, for=203.0.113.9'], FORWARDED, "203.0.113.9"),
        ("10.0.0.1", ["xfor=203.0.113.9"], FORWARDED, "10.0.0.1"),
    ],
)  # fmt: skip
def test_where_a_request_comes_from(peer: str, forwarded: list[str], by: ForwardedBy, address: str) -> None:
    assert client_address(peer, forwarded, by, PROXIES) == address


# -- request ids


def test_a_callers_request_id_is_taken_when_it_is_plain() -> None:
    trace = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert request_id_of([b"req-1.a_B"], []) == "req-1.a_B"
    assert request_id_of([b"req-1"], [trace]) == "req-1"
    assert request_id_of([], [trace]) == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert request_id_of([b"bad id"], [trace]) == "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    "given",
    [b"", b"a b", b"a\nb", b'"x"', b"x" * 65, b"\xff", b"-x", b"{}", b"a/b"],
)
def test_another_request_id_is_replaced(given: bytes) -> None:
    made = request_id_of([given], [])
    assert made.encode() != given
    assert len(made) == 32


def test_an_api_key_is_no_request_id() -> None:
    """It would stand in logs."""
    key = str(api_keys.new())
    assert request_id_of([key.encode()], []) != key


@pytest.mark.parametrize(
    "trace",
    [
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01",
        b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n",
    ],
)
def test_a_bad_traceparent_is_no_id(trace: bytes) -> None:
    assert request_id_of([], [trace]) != "4bf92f3577b34da6a3ce929d0e0e4736"


def test_what_is_said_twice_is_not_taken() -> None:
    assert request_id_of([b"a", b"a"], []) != "a"
    assert request_id_of([], []) != request_id_of([], [])
