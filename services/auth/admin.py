"""The admin routes: clients and their API keys. Each needs an access token with the scope admin:clients."""

import time
from typing import Any

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from libs.common.contracts.clients import Client, Scope
from libs.common.contracts.faults import Code, Fault, failed
from libs.common.credentials.directory import Directory
from libs.common.credentials.tokens import Rejected, UnknownKey, verify
from services.auth import metrics, requests
from services.auth.bodies import read_body
from services.auth.keyring import Keyring
from services.auth.problems import problem
from services.auth.registry import Registry, no_client

log = structlog.get_logger()


class Unauthorized(Exception):
    """`challenge` is the WWW-Authenticate of RFC 6750 §3."""

    def __init__(self, fault: Fault, challenge: str) -> None:
        super().__init__(fault.message)
        self.fault = fault
        self.challenge = challenge


class Admin:
    def __init__(self, issuer: str, directory: Directory, keyring: Keyring, registry: Registry) -> None:
        self._issuer = issuer
        self._directory = directory
        self._keyring = keyring
        self._registry = registry

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/clients", self.create_client, methods=["POST"]),
            Route("/clients", self.list_clients, methods=["GET"]),
            Route("/clients/{client}", self.get_client, methods=["GET"]),
            Route("/clients/{client}/keys", self.create_key, methods=["POST"]),
        ]

    async def create_client(self, request: Request) -> Response:
        actor = self._authorize(request)
        asked = requests.create_client(await read_body(request))
        scopes = tuple(dict.fromkeys(str(scope) for scope in asked.scopes))
        made = await self._registry.create_client(asked.name, scopes, asked.policy)
        metrics.clients_created.inc()
        log.info("client.created", client=made.client.id, scopes=scopes, by=actor)
        return _json({**_shown(made.client), "client_secret": made.secret}, 201)

    async def list_clients(self, request: Request) -> Response:
        self._authorize(request)
        clients = sorted(self._directory.clients.values(), key=lambda client: client.id)
        return _json({"clients": [_shown(client) for client in clients]})

    async def get_client(self, request: Request) -> Response:
        self._authorize(request)
        client = self._directory.clients.get(request.path_params["client"])
        if client is None:
            raise no_client(request.path_params["client"])
        keys = [
            {"key_id": key.id, "last4": key.last4, "disabled": key.disabled, "created_at": key.created_at}
            for key in self._directory.keys.values()
            if key.client == client.id
        ]
        return _json({**_shown(client), "keys": keys})

    async def create_key(self, request: Request) -> Response:
        actor = self._authorize(request)
        requests.create_key(await read_body(request))
        made = await self._registry.create_key(request.path_params["client"])
        metrics.keys_created.inc()
        log.info("key.created", client=made.key.client, key=made.key.id, by=actor)
        return _json({"api_key": made.text, "key_id": made.key.id, "client_id": made.key.client}, 201)

    def _authorize(self, request: Request) -> str:
        """Who asks. Raises Unauthorized; Failed (UNAVAILABLE) while nobody can be judged."""
        require_ready(self._directory, self._keyring)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise _unauthenticated("Send `Authorization: Bearer <access token>`; POST /oauth/token gives one.", "")
        claims = verify(token.strip(), self._keyring.public, issuer=self._issuer, now=time.time())
        if isinstance(claims, UnknownKey):
            claims = Rejected("was signed by a key that does not exist here")
        if isinstance(claims, Rejected):
            raise _unauthenticated(f"The access token {claims.reason}; get a new one.")
        client = self._directory.clients.get(claims.client)
        if client is None or client.disabled or claims.iat < client.not_before:
            raise _unauthenticated("The access token was revoked, or its client was; get a new one.")
        if Scope.ADMIN_CLIENTS not in claims.scopes & set(client.scopes):
            raise Unauthorized(
                Fault(
                    code=Code.FORBIDDEN,
                    message=f"This needs the scope {Scope.ADMIN_CLIENTS}; ask for it with scope={Scope.ADMIN_CLIENTS}.",
                ),
                f'Bearer realm="arriero", error="insufficient_scope", scope="{Scope.ADMIN_CLIENTS}"',
            )
        return client.id


def require_ready(directory: Directory, keyring: Keyring) -> None:
    """Raises Failed (UNAVAILABLE): a client that was disabled meanwhile must not get through on old knowledge."""
    if (why := directory.check() or keyring.check()) is not None:
        raise failed(Code.UNAVAILABLE, f"The auth service is not ready: {why}. Try again in a moment.", retry_after_s=1)


def refuse(error: Unauthorized) -> Response:
    return problem(error.fault, {"WWW-Authenticate": error.challenge})


def _unauthenticated(message: str, error: str = 'error="invalid_token"') -> Unauthorized:
    challenge = 'Bearer realm="arriero"' + (f", {error}" if error else "")
    return Unauthorized(Fault(code=Code.UNAUTHENTICATED, message=message), challenge)


def _shown(client: Client) -> dict[str, Any]:
    return {
        "client_id": client.id,
        "name": client.name,
        "scopes": client.scopes,
        "policy": {
            **msgspec.structs.asdict(client.policy),
            "models": msgspec.structs.asdict(client.policy.models),
            "limits": msgspec.structs.asdict(client.policy.limits),
        },
        "disabled": client.disabled,
        "created_at": client.created_at,
    }


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, {"Cache-Control": "no-store"}, media_type="application/json")
