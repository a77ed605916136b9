"""Failed authentications at gateways are counted over all of them; who has the right credential is not shut out by others."""

import httpx
import pytest

from libs.common.bus.connection import Bus
from libs.common.credentials import api_keys
from tests.auth.running import running_auth
from tests.gateway.running import Gateway, add_client, running_gateway
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

LIMIT = 4  # a minute: once it is met, it takes 15 s until another may fail


async def ask(http: httpx.AsyncClient, credential: str = "", *, address: str = "192.0.2.1") -> httpx.Response:
    headers = {"x-forwarded-for": address} | ({"x-api-key": credential} if credential else {})
    return await http.get("/v1/models", headers=headers)


async def known(gateway: Gateway, key: str, address: str) -> None:
    async with gateway.client("") as http:

        async def answers() -> bool:
            return (await ask(http, key, address=address)).status_code == 200

        await eventually(answers)


@pytest.fixture
def wrong() -> list[str]:
    return [str(api_keys.new()) for _ in range(LIMIT)]


async def test_guesses_are_limited_over_all_gateways(nats: NatsServer, bus: Bus, wrong: list[str]) -> None:
    mine, unused = await add_client(bus, "alice"), await add_client(bus, "bob")
    settings = {"address_failures": LIMIT, "trusted_proxies": "127.0.0.1/32"}
    async with running_gateway(nats, **settings) as one, running_gateway(nats, **settings) as other:
        await known(one, mine, "192.0.2.1")
        await known(other, unused, "192.0.2.9")
        async with one.client("") as http, other.client("") as elsewhere:
            assert [(await ask(http)).status_code for _ in range(LIMIT + 3)] == [401] * (
                LIMIT + 3
            )  # these are no guesses
            assert [(await ask(http, key)).status_code for key in wrong] == [401] * LIMIT

            async def refused() -> bool:
                answer = await ask(elsewhere, str(api_keys.new()))
                return answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 60

            await eventually(refused)
            answer = await ask(http, str(api_keys.new()))
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
            assert (await ask(http, unused)).status_code == 429  # from here it was never seen: it might be a guess
            assert (await ask(http, mine)).status_code == 200  # this one was
            assert (await ask(http, unused, address="192.0.2.2")).status_code == 200  # others are other addresses'
            assert (await ask(elsewhere, unused, address="192.0.2.2")).status_code == 200


async def test_secrets_of_one_key_are_not_tried_from_everywhere(nats: NatsServer, bus: Bus) -> None:
    mine = await add_client(bus, "alice")
    parsed = api_keys.parse(mine)
    assert parsed
    settings = {"address_failures": 1000, "trusted_proxies": "127.0.0.1/32"}
    async with running_gateway(nats, **settings) as gateway, gateway.client("") as http:
        await known(gateway, mine, "192.0.2.1")
        guesses = [str(api_keys.ApiKeyText(parsed.id, api_keys.new_secret())) for _ in range(7)]
        statuses = [(await ask(http, key, address=f"192.0.2.{n}")).status_code for n, key in enumerate(guesses, 10)]
        assert statuses == [401] * 5 + [429] * 2
        assert (await ask(http, mine, address="192.0.2.77")).status_code == 200  # nobody locks its owner out


async def test_a_neighbours_guesses_do_not_lock_out_a_client_with_a_new_token(
    nats: NatsServer, wrong: list[str]
) -> None:
    """Tokens are replaced every few minutes: it is the client that was seen here, not the token."""
    async with running_auth(nats) as auth:
        secret = await auth.create_client("alice")
        settings = {"address_failures": LIMIT, "trusted_proxies": "127.0.0.1/32", "issuer": auth.issuer}
        async with running_gateway(nats, **settings) as gateway, gateway.client("") as http:
            token = await auth.access_token("alice", secret)
            await eventually(lambda: _lets_in(http, token))
            assert [(await ask(http, key)).status_code for key in wrong] == [401] * LIMIT
            assert (await ask(http, await auth.access_token("alice", secret))).status_code == 200
            stranger = await auth.access_token("bob", await auth.create_client("bob"))
            assert (await ask(http, stranger)).status_code == 429


async def _lets_in(http: httpx.AsyncClient, credential: str) -> bool:
    return (await ask(http, credential)).status_code == 200
