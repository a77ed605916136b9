"""What every answer has, and who is not let in, on a real socket."""

import json
from collections.abc import Sequence

import pytest

from libs.common.edge import Rules
from libs.common.edge.addresses import networks
from libs.common.edge.hosts import hosts
from tests.edge.raw import PATIENT, Place, get, parsed, place

RULES = Rules("ARRIERO_GATEWAY_", hosts(["llm.example.org"]), frozenset(["https://chat.example.org"]))
ALWAYS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


async def asked(
    there: Place, *headers: str, method: str = "GET", path: str = "/", host: str = "x"
) -> tuple[int, dict[str, str], bytes]:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
    (answer,) = parsed(await there.say("\r\n".join(lines).encode()))
    return answer


@pytest.mark.parametrize("path", ["/", "/fails"])
async def test_every_answer_has_the_headers_and_no_banner(path: str) -> None:
    async with place(rules=RULES) as there:
        status, headers, _ = await asked(there, path=path)
        assert status == (500 if path == "/fails" else 200)
        assert headers.items() >= ALWAYS.items()
        assert len(headers["x-request-id"]) == 32
        assert "server" not in headers
        assert "date" in headers


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\r\n\r\n",
        get("/" + "x" * 9000),
        get("/", "X: " + "y" * 40_000),
        get().replace(b"Host: x", b"Host: evil.example"),
    ],
)
async def test_so_has_what_is_refused(data: bytes) -> None:
    async with place(PATIENT, RULES) as there, there.client() as client:
        client.write(data)
        client.writer.write_eof()
        ((_, headers, body),) = parsed(await client.until_closed())
        assert headers.items() >= ALWAYS.items()
        assert len(headers["x-request-id"]) == 32
        assert "server" not in headers
        assert json.loads(body)["status"] >= 400


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("gpu-box:8700", 200),
        ("127.0.0.1", 200),
        ("LLM.example.org", 200),
        ("evil.example", 421),
        ("evil.example:8700", 421),
    ],
)
async def test_a_foreign_host_is_not_let_in_and_hears_which_setting_it_is(host: str, status: int) -> None:
    async with place(rules=RULES) as there:
        answered, _, body = await asked(there, host=host)
        assert answered == status
        assert len(there.app.seen) == (status == 200)
        if status == 421:
            assert json.loads(body)["code"] == "misdirected"
            assert "ARRIERO_GATEWAY_ALLOWED_HOSTS" in json.loads(body)["detail"]


async def test_old_clients_without_a_host_are_let_in() -> None:
    async with place(rules=RULES) as there:
        assert [status for status, _, _ in parsed(await there.say(b"GET / HTTP/1.0\r\n\r\n"))] == [200]


# -- browsers


async def test_pages_of_other_origins_are_not_let_in() -> None:
    async with place(rules=RULES) as there:
        for origin in (
            "https://evil.example",
            "null",
            "https://chat.example.org.evil.example",
            "http://chat.example.org",
        ):
            status, headers, body = await asked(there, f"Origin: {origin}", method="POST")
            assert status == 403
            assert "access-control-allow-origin" not in headers
            assert b"ARRIERO_GATEWAY_CORS_ORIGINS" in body
        assert there.app.seen == []


async def test_pages_of_a_listed_origin_may_read_the_answer() -> None:
    async with place(rules=RULES) as there:
        status, headers, _ = await asked(there, "Origin: https://chat.example.org")
        assert status == 200
        assert headers["access-control-allow-origin"] == "https://chat.example.org"
        assert headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in headers


async def test_own_pages_need_no_setting_and_programs_say_no_origin() -> None:
    async with place(rules=RULES) as there:
        for headers in (["Origin: http://gpu-box:8700"], []):
            status, answered, _ = await asked(there, *headers, host="gpu-box:8700")
            assert status == 200
            assert "access-control-allow-origin" not in answered


def _preflight(origin: str, wanted: Sequence[str] = ("authorization", "x-stainless-os")) -> list[str]:
    return [
        f"Origin: {origin}", "Access-Control-Request-Method: POST",
        f"Access-Control-Request-Headers: {','.join(wanted)}",
    ]  # fmt: skip


async def test_a_preflight_of_a_listed_origin_is_answered_without_the_application() -> None:
    async with place(rules=RULES) as there:
        status, headers, body = await asked(there, *_preflight("https://chat.example.org"), method="OPTIONS")
        assert (status, body) == (204, b"")
        assert headers["access-control-allow-origin"] == "https://chat.example.org"
        assert headers["access-control-allow-headers"] == "authorization,x-stainless-os"
        assert "POST" in headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in headers
        assert there.app.seen == []


async def test_a_preflight_of_others_allows_nothing() -> None:
    for rules in (RULES, Rules("ARRIERO_GATEWAY_", hosts([]))):
        async with place(rules=rules) as there:
            status, headers, _ = await asked(there, *_preflight("https://evil.example"), method="OPTIONS")
            assert status == 403
            assert not [name for name in headers if name.startswith("access-control")]


async def test_strange_header_names_are_not_echoed() -> None:
    async with place(rules=RULES) as there:
        _, headers, _ = await asked(there, *_preflight("https://chat.example.org", ["a b", '"x"']), method="OPTIONS")
        assert "access-control-allow-headers" not in headers


async def test_options_without_a_preflight_is_the_applications() -> None:
    async with place(rules=RULES) as there:
        status, _, _ = await asked(there, "Origin: https://chat.example.org", method="OPTIONS")
        assert status == 200
        assert there.app.seen == [("OPTIONS", "/")]


# -- ids, addresses, credentials in addresses


async def test_a_request_id_goes_through_and_a_bad_one_does_not() -> None:
    async with place(rules=RULES) as there:
        _, headers, _ = await asked(there, "X-Request-Id: mine-1")
        assert headers["x-request-id"] == there.app.scopes[-1]["state"]["request_id"] == "mine-1"
        for bad in ("a b", "<x>", "x" * 100):
            _, headers, _ = await asked(there, f"X-Request-Id: {bad}")
            assert headers["x-request-id"] == there.app.scopes[-1]["state"]["request_id"] != bad
        assert len({scope["state"]["request_id"] for scope in there.app.scopes}) == 4


async def test_requests_of_one_connection_have_ids_of_their_own() -> None:
    async with place(rules=RULES) as there:
        raw = await there.say(get("/a") + get("/b", "X-Request-Id: mine") + get("/c", "Connection: close"))
        ids = [headers["x-request-id"] for _, headers, _ in parsed(raw)]
        assert ids == [scope["state"]["request_id"] for scope in there.app.scopes]
        assert len(set(ids)) == 3
        assert ids[1] == "mine"


async def test_the_address_is_that_of_the_client_only_behind_a_known_proxy() -> None:
    for proxies, expected in (((), "127.0.0.1"), (networks(["127.0.0.0/8"]), "203.0.113.9")):
        async with place(rules=RULES._replace(proxies=proxies)) as there:
            await asked(there, "X-Forwarded-For: 6.6.6.6, 203.0.113.9", "Forwarded: for=6.6.6.6")
            (scope,) = there.app.scopes
            assert scope["state"]["address"] == scope["client"][0] == expected


async def test_a_credential_in_the_address_is_refused_and_not_repeated() -> None:
    async with place(rules=RULES) as there:
        status, headers, body = await asked(there, path="/?access_token=arr-canary-4711")
        assert status == 400
        assert b"Authorization" in body
        assert "canary" not in str(headers) + body.decode()
        assert there.app.seen == []
