"""Who may administrate: a bearer token with the scope that a route declares (RFC 6750)."""

import time

from starlette.requests import Request
from starlette.responses import Response

from libs.common.contracts.clients import Scope
from libs.common.contracts.faults import Code, Fault, failed
from services.auth.judging import Judge, Worthless
from services.auth.problems import problem
from services.auth.readiness import Readiness
from services.auth.recording import note


class Unauthorized(Exception):
    """`challenge` is the WWW-Authenticate of RFC 6750 §3."""

    def __init__(self, fault: Fault, challenge: str) -> None:
        super().__init__(fault.message)
        self.fault = fault
        self.challenge = challenge


class Authorization:
    def __init__(self, judge: Judge, readiness: Readiness) -> None:
        self._judge = judge
        self._readiness = readiness

    def require(self, request: Request, scope: Scope | None) -> str:
        """The client who asks; `scope` None: any. Raises Unauthorized; Failed (UNAVAILABLE) while nobody can be judged."""
        self._readiness.require()
        given = request.headers.getlist("authorization")
        if len(given) > 1:
            raise failed(Code.INVALID_REQUEST, "There is more than one Authorization header.")
        scheme, _, token = (given or [""])[0].partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise _unauthenticated("Send `Authorization: Bearer <access token>`; POST /oauth/token gives one.", "")
        found = self._judge.token(token.strip(), time.time())
        if isinstance(found, Worthless):
            raise _unauthenticated(f"The access token {found.reason}; get a new one.")
        note(request, actor=found.client.id, credential=f"token:{found.claims.jti}")
        if scope is not None and scope not in found.scopes:
            raise Unauthorized(
                Fault(code=Code.FORBIDDEN, message=f"This needs the scope {scope}; ask for it with scope={scope}."),
                f'Bearer realm="arriero", error="insufficient_scope", scope="{scope}"',
            )
        return found.client.id


def refuse(error: Unauthorized) -> Response:
    return problem(error.fault, {"WWW-Authenticate": error.challenge})


def _unauthenticated(message: str, error: str = 'error="invalid_token"') -> Unauthorized:
    challenge = 'Bearer realm="arriero"' + (f", {error}" if error else "")
    return Unauthorized(Fault(code=Code.UNAUTHENTICATED, message=message), challenge)
