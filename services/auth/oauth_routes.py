"""The three OAuth endpoints over HTTP: the asynchronous shell around `oauth` and `inspection`."""

import time
from typing import Any

import msgspec
import structlog
from authlib.oauth2.rfc6749 import InvalidGrantError, InvalidRequestError
from starlette.requests import Request
from starlette.responses import Response

from libs.common.bus.failures import BusError
from libs.common.contracts.faults import Code, Failed, Fault
from libs.common.credentials.failure_log import FailureLog
from services.auth import metrics, operations
from services.auth.bodies import read_body
from services.auth.inspection import End, Inspection, KeyEnd, NotYours, TokenEnd
from services.auth.oauth import TOKEN_PATH, Act, Answer, OAuth, TokenRequest
from services.auth.once import Once
from services.auth.presenting import ClientRefused
from services.auth.problems import retry_after
from services.auth.readiness import Readiness
from services.auth.recording import address_of, note
from services.auth.registry import Registry
from services.auth.revoker import Revoker
from services.auth.routes import Opening, RouteSpec

log = structlog.get_logger()

REVOKE_PATH, INTROSPECT_PATH = "/oauth/revoke", "/oauth/introspect"
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}  # RFC 6749 §5.1


class OAuthRoutes:
    def __init__(
        self,
        oauth: OAuth,
        inspection: Inspection,
        readiness: Readiness,
        registry: Registry,
        revoker: Revoker,
        once: Once,
        failures: FailureLog,
    ) -> None:
        self._oauth = oauth
        self._inspection = inspection
        self._readiness = readiness
        self._registry = registry
        self._revoker = revoker
        self._once = once
        self._failures = failures

    @property
    def routes(self) -> list[RouteSpec]:
        return [
            RouteSpec("POST", TOKEN_PATH, Opening.CLIENT, self.token, operations.TOKEN),
            RouteSpec("POST", REVOKE_PATH, Opening.CLIENT, self.revoke, operations.REVOKE),
            RouteSpec("POST", INTROSPECT_PATH, Opening.CLIENT, self.introspect, operations.INTROSPECT),
        ]

    async def token(self, request: Request) -> Response:
        answer = await self._answer(request, self._oauth.issue)
        if answer.error is None:
            metrics.tokens_issued.inc()
            log.info("token.issued", client=answer.client, scope=answer.body["scope"])
        return _sent(answer)

    async def introspect(self, request: Request) -> Response:
        def act(asked: TokenRequest) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
            asker = self._oauth.authenticate(asked, "introspection")
            return 200, self._inspection.introspect(asker, _token(asked), time.time()), []

        return _sent(await self._answer(request, act))

    async def revoke(self, request: Request) -> Response:
        """RFC 7009 §2.2: 200 whether there was something to revoke or not."""
        end: End = None

        def act(asked: TokenRequest) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
            nonlocal end
            asker = self._oauth.authenticate(asked, "revocation")
            end = self._inspection.revoke(asker, _token(asked), time.time())
            if isinstance(end, NotYours):
                raise InvalidGrantError("The token was issued to another client.")
            return 200, {}, []

        answer = await self._answer(request, act)
        if answer.error is None:
            note(request, target=_named(end))
            answer = await self._end(end, answer)
        return _sent(answer)

    async def _end(self, end: End, answer: Answer) -> Answer:
        try:
            match end:
                case TokenEnd():
                    await self._revoker.end_token(end)
                    log.info("token.revoked", client=answer.client, jti=end.jti)
                case KeyEnd():
                    await self._registry.revoke_key(end.id)
                    log.info("key.revoked", key=end.id, by=answer.client)
        except Failed:  # somebody else revoked that key just now
            pass
        except BusError as error:
            log.warning("token.revoke_failed", client=answer.client, error=str(error))
            return _away("It is not known whether this was revoked. Try again in a moment.")
        return answer

    async def _once_only(self, answer: Answer) -> Answer:
        """What was decided on the strength of an assertion holds only if nobody showed that before, at any replica."""
        if answer.used is None:
            return answer
        try:
            if await self._once.claim(answer.used):
                return answer
        except BusError as error:
            log.warning("assertion.not_claimed", client=answer.client, error=str(error))
            return _away("It cannot be seen at the moment whether this assertion is new. Try again with another one.")
        status, body, headers = ClientRefused()()
        return answer._replace(status=status, body=body, headers=dict(headers))

    async def _answer(self, request: Request, act: Act) -> Answer:
        try:
            body = await read_body(request)
            self._readiness.require()
        except Failed as error:
            # RFC 6749 §5.2 has no code for these two; `temporarily_unavailable` is the one of §4.1.2.1.
            code = "invalid_request" if error.fault.code == Code.TOO_LARGE else "temporarily_unavailable"
            answer = _oauth_error(error.fault, code)
        else:
            headers = request.headers
            asked = self._oauth.read(headers.getlist("authorization"), headers.get("content-type", ""), body)
            answer = await self._judged(request, asked, act)
        note(request, actor=answer.client)
        if answer.error is not None:
            metrics.failures.labels(answer.error).inc()
            log.info("token.denied", client=answer.client or "(unknown)", reason=answer.error, path=request.url.path)
        return answer

    async def _judged(self, request: Request, asked: TokenRequest | Answer, act: Act) -> Answer:
        """Between the look at earlier failures and the count of this one nothing waits, so many requests at once get no
        more guesses than as many in a row; only who shows an assertion with a good signature waits for its record."""
        claimed = "" if isinstance(asked, Answer) else asked.claimed
        attempts = self._failures.ask(address_of(request), claimed)
        if (wait := attempts.blocked_s) > 0:
            return _slow_down(wait)
        answer = asked if isinstance(asked, Answer) else await self._once_only(self._oauth.answered(asked, act))
        if answer.error is None:
            attempts.succeeded()
        elif answer.error == ClientRefused.error and (wait := attempts.failed()) > 0:
            return _slow_down(wait)._replace(client=answer.client)
        return answer


def _named(end: End) -> str:
    match end:
        case TokenEnd():
            return f"token:{end.jti}"
        case KeyEnd():
            return f"key:{end.id}"
    return ""


def _token(request: TokenRequest) -> str:
    """Raises OAuth2Error."""
    if "token" not in request.fields:
        raise InvalidRequestError("Parameter token is missing.")
    return request.fields["token"]


def _sent(answer: Answer) -> Response:
    body = msgspec.json.encode(answer.body) if answer.body else b""
    kind = "application/json" if body else None
    return Response(body, answer.status, {**NO_STORE, **answer.headers}, media_type=kind)


def _away(message: str) -> Answer:
    return _oauth_error(Fault(code=Code.UNAVAILABLE, message=message, retry_after_s=1), "temporarily_unavailable")


def _slow_down(wait_s: float) -> Answer:
    """`slow_down` is RFC 8628's, §3.5; RFC 6749 has none for it."""
    message = "There were too many failed attempts. Look whether client_id and secret are right, and try again later."
    return _oauth_error(Fault(code=Code.RATE_LIMITED, message=message, retry_after_s=wait_s), "slow_down")


def _oauth_error(fault: Fault, code: str) -> Answer:
    return Answer(fault.meaning.status, {"error": code, "error_description": fault.message}, retry_after(fault), "")
