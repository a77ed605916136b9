"""Auth's admin API, as its administrator."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import quote

from libs.cli.failures import CommandFailed
from libs.cli.home import MadeClient
from libs.cli.http import Http, connect
from libs.cli.whereabouts import Administrator

CLIENTS, CLUSTER, AUDIT = "admin:clients", "admin:cluster", "audit:read"


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
    """Answers are the service's own objects; what raises is CommandFailed."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def clients(self) -> list[dict[str, Any]]:
        answer = await self._http.call("GET", "/clients")
        return list(answer["clients"])

    async def client(self, name: str) -> dict[str, Any]:
        return await self._object("GET", _client(name))

    async def create_client(
        self,
        name: str,
        scopes: Sequence[str] = (),
        policy: dict[str, Any] | None = None,
        *,
        with_key: bool = True,
        **more: Any,
    ) -> MadeClient:
        """A client, with one API key unless it is not wanted. Its secret and key are shown this once; a client with public
        keys (`jwks`) has no secret."""
        body = (
            {"name": name}
            | ({"scopes": list(scopes)} if scopes else {})
            | ({"policy": policy} if policy else {})
            | more
        )
        made = await self._object("POST", "/clients", body)
        key = ""
        if with_key:
            try:
                key = (await self.create_key(made["client_id"]))["api_key"]
            except CommandFailed as failure:
                failure.more = (
                    f"The client was made, but no key for it, and its secret was not shown: `arriero client rotate {name}` "
                    f"gives a secret, `arriero key create {name}` a key."
                )
                raise
        return MadeClient(
            client_id=made["client_id"],
            client_secret=made.get("client_secret", ""),
            api_key=key,
            name=made["name"],
            scopes=list(made.get("scopes", [])),
        )

    async def update_client(self, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        return await self._object("PATCH", _client(name), patch)

    async def change_client(self, name: str, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """`verb`: disable, enable or rotate."""
        return await self._object("POST", f"{_client(name)}/{verb}", body)

    async def drop_secret(self, name: str) -> dict[str, Any]:
        return await self._object("DELETE", f"{_client(name)}/secret")

    async def delete_client(self, name: str) -> dict[str, Any]:
        return await self._object("DELETE", _client(name))

    async def create_key(self, client: str, **asked: Any) -> dict[str, Any]:
        return await self._object("POST", f"{_client(client)}/keys", asked or None)

    async def keys(self, client: str = "") -> list[dict[str, Any]]:
        answer = await self._http.call("GET", f"{_client(client)}/keys" if client else "/keys")
        return list(answer["keys"])

    async def revoke_key(self, key: str) -> dict[str, Any]:
        return await self._object("DELETE", f"/keys/{quote(key, safe='')}")

    async def signing_keys(self) -> dict[str, Any]:
        return await self._object("GET", "/signing-keys")

    async def rotate_signing(self, *, now: bool) -> dict[str, Any]:
        return await self._object("POST", "/signing-keys/rotate", {"now": now})

    async def _object(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = await self._http.call(method, path, body)
        return answer


@contextlib.asynccontextmanager
async def administration(who: Administrator) -> AsyncIterator[Admin]:
    async with connect(who.auth, await access_token(who, CLIENTS)) as http:
        yield Admin(http)


def _client(name: str) -> str:
    return f"/clients/{quote(name, safe='')}"
