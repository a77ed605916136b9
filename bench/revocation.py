"""How long a revocation takes to be felt: three gateways as processes, open streams at each, a credential revoked at auth.

    python -m bench.revocation [--rounds 50] [--streams 30] [--way signing] [--json]

Each round makes a client with a key and a token, opens streams at all gateways, and revokes in one of five ways, in turn: the key
(DELETE /keys/{id}), the token (POST /oauth/revoke), the client (POST /clients/{client}/disable), all its tokens (rotate, `now`),
or every token there is (POST /signing-keys/rotate, `now`, which is `arriero auth rotate --now`).
Seconds are counted from the moment the revoking request is sent, so its own way to auth and into NATS is in them:

| figure  | until |
|---|---|
| refused | the last gateway answers 401 to a new request; asked every few milliseconds at each |
| closed  | a stream has ended, each stream counts |
| idle    | the node has stopped generating for all of them: no run in the fleet's view |
"""

import argparse
import asyncio
import base64
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from bench.stack import running_stack
from libs.cli.up.processes import OPERATOR

PORT = 29300
MODEL = "llama3.2:3b"
ASK = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "[[tokens=3000]] tell"}]}
WAYS = ("key", "token", "client", "rotate", "signing")


class Round:
    def __init__(
        self, http: aiohttp.ClientSession, up: dict[str, Any], gateways: list[str], number: int, way: str
    ) -> None:
        self.http, self.up, self.gateways = http, up, gateways
        self.client = f"bench-{number}"
        self.way = way
        self.closed: list[float] = []
        self.refused: list[float] = []

    async def auth(self, method: str, path: str, **more: Any) -> Any:
        async with self.http.request(method, self.up["auth"] + path, **more) as answer:
            assert answer.status < 300, (path, answer.status, await answer.text())
            return await answer.json() if answer.status != 204 and answer.content_length else None

    async def token(self, client: str, secret: str, scope: str = "") -> str:
        form = {"grant_type": "client_credentials", "scope": scope}
        given = await self.auth("POST", "/oauth/token", data=form, headers=basic(client, secret))
        return str(given["access_token"])

    async def run(self, admin: dict[str, str], streams: int) -> None:
        made = await self.auth("POST", "/clients", json={"name": self.client}, headers=admin)
        secret = made["client_secret"]
        key = await self.auth("POST", f"/clients/{self.client}/keys", headers=admin)
        credential = key["api_key"] if self.way == "key" else await self.token(self.client, secret)
        bearer = {"Authorization": f"Bearer {credential}"}
        for gateway in self.gateways:
            while await self.status(gateway, bearer) != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        begun = [asyncio.Event() for _ in range(streams)]
        readers = [
            asyncio.create_task(self.read(self.gateways[n % len(self.gateways)], bearer, event))
            for n, event in enumerate(begun)
        ]
        await asyncio.gather(*(asyncio.wait_for(event.wait(), 60) for event in begun))
        self.sent_at = time.monotonic()
        asking = [asyncio.create_task(self.until_refused(gateway, bearer)) for gateway in self.gateways]
        match self.way:
            case "key":
                await self.auth("DELETE", f"/keys/{key['key_id']}", headers=admin)
            case "token":
                await self.auth("POST", "/oauth/revoke", data={"token": credential}, headers=basic(self.client, secret))
            case "client":
                await self.auth("POST", f"/clients/{self.client}/disable", headers=admin)
            case "rotate":
                await self.auth("POST", f"/clients/{self.client}/rotate", json={"now": True}, headers=admin)
            case "signing":
                await self.auth("POST", "/signing-keys/rotate", json={"now": True}, headers=admin)
        await asyncio.wait_for(asyncio.gather(*readers, *asking), 60)

    async def status(self, gateway: str, headers: dict[str, str]) -> int:
        async with self.http.get(f"{gateway}/v1/models", headers=headers) as answer:
            await answer.read()
            return answer.status

    async def until_refused(self, gateway: str, headers: dict[str, str]) -> None:
        while await self.status(gateway, headers) != 401:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self.refused.append(time.monotonic() - self.sent_at)

    async def read(self, gateway: str, headers: dict[str, str], begun: asyncio.Event) -> None:
        with suppress(aiohttp.ClientError):
            async with self.http.post(f"{gateway}/v1/chat/completions", json=ASK, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
                async for _ in answer.content.iter_any():
                    begun.set()
        self.closed.append(time.monotonic() - self.sent_at)


def basic(client: str, secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode()}


def percentiles(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    return {
        "n": len(values),
        "p50": values[len(values) // 2],
        "p99": values[int(len(values) * 0.99)],
        "max": values[-1],
    }


async def idle(http: aiohttp.ClientSession, gateway: str, headers: dict[str, str]) -> None:
    while True:
        async with http.get(f"{gateway}/nodes", headers=headers) as answer:
            # 401: a gateway that has not fetched the new signing key yet
            if answer.status == 200 and not any(node["running"] for node in (await answer.json())["nodes"]):
                return
        await asyncio.sleep(0.05)


async def measure(rounds: int, streams: int, ways: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, list[float]] = {"refused": [], "closed": [], "idle": []}
    closed: dict[str, list[float]] = {way: [] for way in ways}
    refused: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        async with running_stack(
            Path(folder), PORT, "--sim", "2", "--slots", str(streams), "--gateways", "3",
            ARRIERO_GATEWAY_ADDRESS_FAILURES="0", ARRIERO_AUTH_ADDRESS_FAILURES="0",  # asking until it is refused is no guess
        ) as up, aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2), timeout=aiohttp.ClientTimeout(total=120)
        ) as http:  # fmt: skip
            gateways = [up["gateway"]] + [f"http://127.0.0.1:{PORT + 50 + n}" for n in range(2)]
            secret = (Path(folder) / "home" / "secrets" / OPERATOR).read_text().strip()
            for number in range(rounds):
                one = Round(http, up, gateways, number, ways[number % len(ways)])

                async def admin(one: Round = one) -> dict[str, str]:
                    token = await one.token(OPERATOR, secret, "admin:clients admin:cluster")
                    return {"Authorization": f"Bearer {token}"}

                await one.run(await admin(), streams)
                await idle(http, up["gateway"], await admin())
                found["idle"].append(time.monotonic() - one.sent_at)
                found["refused"] += one.refused
                found["closed"] += one.closed
                closed[one.way] += one.closed
                refused[one.way] += one.refused
    return {
        **{name: percentiles(values) for name, values in found.items()},
        "closed_by_way": {f"closed {way}": percentiles(values) for way, values in closed.items() if values},
        "refused_by_way": {f"refused {way}": percentiles(values) for way, values in refused.items() if values},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--streams", type=int, default=30, help="open streams in each round, over three gateways")
    parser.add_argument("--way", choices=WAYS, help="only this one")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = asyncio.run(measure(asked.rounds, asked.streams, (asked.way,) if asked.way else WAYS))
    if asked.json:
        json.dump(found, sys.stdout, indent=2)
        return
    print(f"load average {os.getloadavg()[0]:.1f}")
    by_way = {**found["refused_by_way"], **found["closed_by_way"]}
    for name, figures in [*((n, found[n]) for n in ("refused", "closed", "idle")), *by_way.items()]:
        print(
            f"{name:16}",
            "  ".join(f"{key} {value:.3f} s" if key != "n" else f"n {value}" for key, value in figures.items()),
        )


if __name__ == "__main__":
    main()
