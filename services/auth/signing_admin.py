"""The admin routes of the signing keys: which there are, and their replacement. Scope admin:clients."""

from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import Response

from libs.common.contracts.clients import Scope
from services.auth import operations, requests
from services.auth.answers import json
from services.auth.bodies import read_body
from services.auth.keyring import Keyring
from services.auth.recording import note
from services.auth.rotation import Ring, ends_at
from services.auth.routes import RouteSpec

log = structlog.get_logger()


class SigningAdmin:
    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    @property
    def routes(self) -> list[RouteSpec]:
        return [
            RouteSpec("GET", "/signing-keys", Scope.ADMIN_CLIENTS, self.list_keys, operations.SIGNING_KEYS),
            RouteSpec("POST", "/signing-keys/rotate", Scope.ADMIN_CLIENTS, self.rotate, operations.ROTATE_SIGNING),
        ]

    async def list_keys(self, request: Request, actor: str) -> Response:
        return json(self._shown(self._keyring.ring or Ring(keys=()), ()))

    async def rotate(self, request: Request, actor: str) -> Response:
        asked = requests.rotate_signing(await read_body(request))
        withdrawn: tuple[str, ...] = ()
        if asked.now:
            note(request, reason="now")
            ring, withdrawn = await self._keyring.withdraw()
        else:
            ring = await self._keyring.rotate()
        log.info("signing_key.rotated", now=asked.now, withdrawn=withdrawn, by=actor)
        return json(self._shown(ring, withdrawn))

    def _shown(self, ring: Ring, withdrawn: tuple[str, ...]) -> dict[str, Any]:
        """`until`: when the state ends at the earliest, and the next one begins."""
        keys = [
            {
                "kid": key.kid,
                "state": key.state,
                "since": key.since,
                "until": int(ends_at(key, self._keyring.schedule)),
                "created_at": key.created_at,
            }
            for key in ring.keys
        ]
        return {"keys": keys, "rotation_asked": ring.asked, "withdrawn": withdrawn}
