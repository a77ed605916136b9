"""The admin routes: clients and their API keys. Each names the scope admin:clients; `actor` is who has it.

Whoever has that scope may grant anything, also what he does not have: an administrator of clients is one of all of Arriero.
"""

import time
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import Response

from libs.common.contracts.clients import Client, Scope
from libs.common.contracts.faults import Code, failed
from libs.common.credentials.directory import Directory
from services.auth import changes, metrics, operations, requests
from services.auth.answers import json
from services.auth.bodies import read_body
from services.auth.registry import Registry, no_client, no_key
from services.auth.routes import RouteSpec

log = structlog.get_logger()


class Admin:
    """`operator`: the client that the settings name; its secret and its existence are theirs to decide."""

    def __init__(self, directory: Directory, registry: Registry, *, operator: str = "") -> None:
        self._directory = directory
        self._registry = registry
        self._operator = operator

    @property
    def routes(self) -> list[RouteSpec]:
        return [
            RouteSpec("POST", "/clients", Scope.ADMIN_CLIENTS, self.create_client, operations.CREATE_CLIENT),
            RouteSpec("GET", "/clients", Scope.ADMIN_CLIENTS, self.list_clients, operations.LIST_CLIENTS),
            RouteSpec("GET", "/clients/{client}", Scope.ADMIN_CLIENTS, self.get_client, operations.GET_CLIENT),
            RouteSpec("PATCH", "/clients/{client}", Scope.ADMIN_CLIENTS, self.update_client, operations.UPDATE_CLIENT),
            RouteSpec("DELETE", "/clients/{client}", Scope.ADMIN_CLIENTS, self.delete_client, operations.DELETE_CLIENT),
            RouteSpec(
                "POST", "/clients/{client}/disable", Scope.ADMIN_CLIENTS, self.disable_client, operations.DISABLE_CLIENT
            ),
            RouteSpec(
                "POST", "/clients/{client}/enable", Scope.ADMIN_CLIENTS, self.enable_client, operations.ENABLE_CLIENT
            ),
            RouteSpec(
                "POST", "/clients/{client}/rotate", Scope.ADMIN_CLIENTS, self.rotate_client, operations.ROTATE_CLIENT
            ),
            RouteSpec(
                "DELETE", "/clients/{client}/secret", Scope.ADMIN_CLIENTS, self.drop_secret, operations.DROP_SECRET
            ),
            RouteSpec("POST", "/clients/{client}/keys", Scope.ADMIN_CLIENTS, self.create_key, operations.CREATE_KEY),
            RouteSpec(
                "GET", "/clients/{client}/keys", Scope.ADMIN_CLIENTS, self.list_keys, operations.LIST_KEYS_OF_CLIENT
            ),
            RouteSpec("GET", "/keys", Scope.ADMIN_CLIENTS, self.list_keys, operations.LIST_KEYS),
            RouteSpec("GET", "/keys/{key}", Scope.ADMIN_CLIENTS, self.get_key, operations.GET_KEY),
            RouteSpec("DELETE", "/keys/{key}", Scope.ADMIN_CLIENTS, self.revoke_key, operations.REVOKE_KEY),
        ]

    # -- clients -----------------------------------------------------------------------------------------------------

    async def create_client(self, request: Request, actor: str) -> Response:
        asked = requests.create_client(await read_body(request), time.time())
        client = requests.settled(Client(id=asked.name, name=asked.name), asked)
        made = await self._registry.create_client(client, with_secret=not client.jwks)
        metrics.clients_created.inc()
        log.info("client.created", client=made.client.id, scopes=made.client.scopes, by=actor)
        secret = {"client_secret": made.secret} if made.secret else {}
        return json({**requests.shown_client(made.client), **secret}, 201)

    async def list_clients(self, request: Request, actor: str) -> Response:
        clients = sorted(self._directory.clients.values(), key=lambda client: client.id)
        return json({"clients": [requests.shown_client(client) for client in clients]})

    async def get_client(self, request: Request, actor: str) -> Response:
        client = self._known(request)
        return json({**requests.shown_client(client), "keys": self._keys(client.id)})

    async def update_client(self, request: Request, actor: str) -> Response:
        """A JSON merge patch (RFC 7396): what is named is set, null sets the default, the rest stays."""
        patch = requests.read_patch(await read_body(request))
        now = time.time()

        def change(client: Client) -> Client:
            return requests.settled(client, requests.update_client(client, patch, now))

        changed = await self._registry.change_client(_named(request), change)
        log.info("client.updated", client=changed.id, fields=sorted(patch), by=actor)
        return json(requests.shown_client(changed))

    async def disable_client(self, request: Request, actor: str) -> Response:
        now = time.time()
        changed = await self._registry.change_client(_named(request), lambda client: changes.disabled(client, now))
        log.info("client.disabled", client=changed.id, by=actor)
        return json(requests.shown_client(changed))

    async def enable_client(self, request: Request, actor: str) -> Response:
        changed = await self._registry.change_client(_named(request), changes.enabled)
        log.info("client.enabled", client=changed.id, by=actor)
        return json(requests.shown_client(changed))

    async def rotate_client(self, request: Request, actor: str) -> Response:
        asked = requests.rotate(await read_body(request))
        self._require_not_operator(request, "its secret is ARRIERO_AUTH_BOOTSTRAP_CLIENT_SECRET: change it there")
        grace_s = 0 if asked.now else requests.DEFAULT_GRACE_S if asked.grace_s is None else asked.grace_s
        made = await self._registry.rotate_client(_named(request), time.time(), grace_s=grace_s, end_tokens=asked.now)
        log.info("client.rotated", client=made.client.id, grace_s=grace_s, by=actor)
        return json({**requests.shown_client(made.client), "client_secret": made.secret})

    async def drop_secret(self, request: Request, actor: str) -> Response:
        self._require_not_operator(request, "its secret is ARRIERO_AUTH_BOOTSTRAP_CLIENT_SECRET: unset it first")
        changed = await self._registry.change_client(_named(request), changes.without_secret)
        log.info("client.secret_dropped", client=changed.id, by=actor)
        return json(requests.shown_client(changed))

    async def delete_client(self, request: Request, actor: str) -> Response:
        self._require_not_operator(request, "it would come back: unset ARRIERO_AUTH_BOOTSTRAP_CLIENT_ID first")
        keys = await self._registry.delete_client(_named(request))
        log.info("client.deleted", client=_named(request), keys=keys, by=actor)
        return json({"client_id": _named(request), "deleted": True, "keys": keys})

    # -- keys --------------------------------------------------------------------------------------------------------

    async def create_key(self, request: Request, actor: str) -> Response:
        body = await read_body(request)
        client = self._known(request)
        asked = requests.create_key(body, client, time.time())
        made = await self._registry.create_key(
            client.id,
            name=asked.name,
            scopes=None if asked.scopes is None else requests.once_each(asked.scopes),
            models=asked.models,
            limits=asked.limits,
            expires_at=asked.expires_at,
        )
        metrics.keys_created.inc()
        log.info("key.created", client=made.key.client, key=made.key.id, by=actor)
        return json({**requests.shown_key(made.key), "api_key": made.text}, 201)

    async def list_keys(self, request: Request, actor: str) -> Response:
        client = self._known(request).id if "client" in request.path_params else None
        return json({"keys": self._keys(client)})

    async def get_key(self, request: Request, actor: str) -> Response:
        key = self._directory.keys.get(request.path_params["key"])
        if key is None:
            raise no_key(request.path_params["key"])
        return json(requests.shown_key(key))

    async def revoke_key(self, request: Request, actor: str) -> Response:
        key = request.path_params["key"]
        await self._registry.revoke_key(key)
        log.info("key.revoked", key=key, by=actor)
        return json({"key_id": key, "revoked": True})

    # ----------------------------------------------------------------------------------------------------------------

    def _known(self, request: Request) -> Client:
        client = self._directory.clients.get(_named(request))
        if client is None:
            raise no_client(_named(request))
        return client

    def _keys(self, client: str | None) -> list[dict[str, Any]]:
        keys = (key for key in self._directory.keys.values() if client in (None, key.client))
        return [requests.shown_key(key) for key in sorted(keys, key=lambda key: (key.client, key.created_at, key.id))]

    def _require_not_operator(self, request: Request, why: str) -> None:
        if self._operator and _named(request) == self._operator:
            raise failed(Code.WRONG_STATE, f"Client {self._operator!r} is the one of this service's settings; {why}.")


def _named(request: Request) -> str:
    return str(request.path_params["client"])
