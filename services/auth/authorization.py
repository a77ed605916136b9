"""Who may administrate: a bearer token with the scope that a route declares (RFC 6750)."""

import time

from starlette.requests import Request
from starlette.responses import Response

from libs.common.contracts.clients import Scope
from libs.common.contracts.faults import Code, Failed, Fault, failed
from libs.common.credentials.failure_log import FailureLog
from libs.common.credentials.tokens import claimed_client
from services.auth.judging import Judge, Worthless
from services.auth.problems import problem
from services.auth.readiness import Readiness
from services.auth.recording import address_of, note


class Unauthorized(Exception):
    """`challenge` is the WWW-Authenticate of RFC 6750 §3."""

    def __init__(self, fault: Fault, challenge: str) -> None:
        super().__init__(fault.message)
        self.fault = fault
        self.challenge = challenge


class Authorization:
    def __init__(self, judge: Judge, readiness: Readiness, failures: FailureLog) -> None:
        self._judge = judge
        self._readiness = readiness
        self._failures = failures

    def require(self, request: Request, scope: Scope | None) -> str:
        """The client who asks; `scope` None: any. Raises Unauthorized; Failed: UNAVAILABLE while nobody can be judged,
        RATE_LIMITED after too many failures. Nothing waits between the look at them and the count of this one."""
        self._readiness.require()
        given = request.headers.getlist("authorization")
        if len(given) > 1:
            raise failed(Code.INVALID_REQUEST, "There is more than one Authorization header.")
        scheme, _, token = (given or [""])[0].partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise _unauthenticated("Send `Authorization: Bearer <access token>`; POST /oauth/token gives one.", "")
        attempts = self._failures.ask(address_of(request), claimed_client(token.strip()))
        if (wait_s := attempts.blocked_s) > 0:
            raise _too_many_failures(wait_s)
        found = self._judge.token(token.strip(), time.time())
        if isinstance(found, Worthless):
            if (wait_s := attempts.failed()) > 0:
                raise _too_many_failures(wait_s)
            raise _unauthenticated(f"The access token {found.reason}; get a new one.")
        attempts.succeeded()
        note(request, actor=found.client.id, credential=f"token:{found.claims.jti}")
        if scope is not None and scope not in found.scopes:
            raise Unauthorized(
                Fault(code=Code.FORBIDDEN, message=f"This needs the scope {scope}; ask for it with scope={scope}."),
                f'Bearer realm="arriero", error="insufficient_scope", scope="{scope}"',
            )
        return found.client.id


def refuse(error: Unauthorized) -> Response:
    return problem(error.fault, {"WWW-Authenticate": error.challenge})


def _too_many_failures(wait_s: float) -> Failed:
    message = "Too many credentials from this address were wrong. Wait, and send a token that counts."
    return failed(Code.RATE_LIMITED, message, retry_after_s=wait_s)


def _unauthenticated(message: str, error: str = 'error="invalid_token"') -> Unauthorized:
    challenge = 'Bearer realm="arriero"' + (f", {error}" if error else "")
    return Unauthorized(Fault(code=Code.UNAUTHENTICATED, message=message), challenge)
