"""Auth's admin API, as its administrator."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from libs.cli.home import MadeClient
from libs.cli.http import Http, connect
from libs.cli.whereabouts import Administrator

CLIENTS, CLUSTER = "admin:clients", "admin:cluster"


async def access_token(who: Administrator, scope: str) -> str:
    """By client credentials (RFC 6749 §4.4), good for a few minutes. Administration has to be asked for by name."""
    async with connect(who.auth) as http:
        answer = await http.call(
            "POST",
            "/oauth/token",
            auth=(who.client_id, who.client_secret),
            data={"grant_type": "client_credentials", "scope": scope},
        )
    return str(answer["access_token"])


class Admin:
    def __init__(self, http: Http) -> None:
        self._http = http

    async def clients(self) -> list[dict[str, Any]]:
        answer = await self._http.call("GET", "/clients")
        return list(answer["clients"])

    async def create_client(
        self, name: str, scopes: Sequence[str] = (), policy: dict[str, Any] | None = None
    ) -> MadeClient:
        """A client with one API key. Its secret and key are shown this once."""
        body = {"name": name} | ({"scopes": list(scopes)} if scopes else {}) | ({"policy": policy} if policy else {})
        made = await self._http.call("POST", "/clients", body)
        key = await self.create_key(made["client_id"])
        return MadeClient(
            client_id=made["client_id"],
            client_secret=made["client_secret"],
            api_key=key["api_key"],
            name=made["name"],
            scopes=list(made.get("scopes", [])),
        )

    async def create_key(self, client: str) -> dict[str, Any]:
        made: dict[str, Any] = await self._http.call("POST", f"/clients/{client}/keys")
        return made


@contextlib.asynccontextmanager
async def administration(who: Administrator) -> AsyncIterator[Admin]:
    async with connect(who.auth, await access_token(who, CLIENTS)) as http:
        yield Admin(http)
