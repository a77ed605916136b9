"""The admin routes of the signing keys: which there are, and their replacement. Scope admin:clients."""

from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from libs.common.contracts.clients import Scope
from services.auth import requests
from services.auth.answers import json
from services.auth.authorization import Authorization
from services.auth.bodies import read_body
from services.auth.keyring import Keyring
from services.auth.recording import note
from services.auth.rotation import Ring, ends_at

log = structlog.get_logger()


class SigningAdmin:
    def __init__(self, authorization: Authorization, keyring: Keyring) -> None:
        self._authorization = authorization
        self._keyring = keyring

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/signing-keys", self.list_keys, methods=["GET"]),
            Route("/signing-keys/rotate", self.rotate, methods=["POST"]),
        ]

    async def list_keys(self, request: Request) -> Response:
        self._authorization.require(request, Scope.ADMIN_CLIENTS)
        return json(self._shown(self._keyring.ring or Ring(keys=()), ()))

    async def rotate(self, request: Request) -> Response:
        actor = self._authorization.require(request, Scope.ADMIN_CLIENTS)
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
