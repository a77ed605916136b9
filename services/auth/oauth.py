"""The token endpoint: Authlib's framework-neutral server, its surprising defaults overridden one by one.

Each override names the trap of security-and-clients.md §A1.3 that it closes and has a test in tests/auth/test_oauth_traps.py.
Everything here is synchronous and without I/O: bytes of a request in, an answer out. More ways for a client to prove
itself are registered in `TokenServer.__init__`, further grants and endpoints beside the one there.
"""

import base64
import binascii
import logging
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    ClientCredentialsGrant,
    ClientMixin,
    InvalidClientError,
    InvalidRequestError,
    OAuth2Error,
    OAuth2Request,
)
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from joserfc.jwk import KeySet

from libs.common.contracts.clients import AUDIENCE, ONLY_WHEN_ASKED, TOKEN_TTL_S, Client, Scope
from libs.common.credentials.directory import Directory
from libs.common.credentials.tokens import ALGORITHM
from libs.common.credentials.verifiers import Verifiers
from services.auth.keyring import Keyring

AUTH_METHODS = ["client_secret_basic", "client_secret_post"]  # RFC 8414's names
GRANT = "client_credentials"
MAX_FIELDS = 20

# Authlib writes whole tokens into its debug log.
logging.getLogger("authlib").setLevel(logging.INFO)


class Answer(NamedTuple):
    """`client` is the id of a client that exists, or empty: what a stranger typed there may be a secret."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]
    client: str

    @property
    def error(self) -> str | None:
        return self.body.get("error")


class Presented(NamedTuple):
    client: str
    secret: str
    method: str


class OAuth:
    def __init__(self, issuer: str, directory: Directory, keyring: Keyring, verifiers: Verifiers) -> None:
        self._directory = directory
        self._endpoint = _tls(issuer) + "/oauth/token"
        self._server = TokenServer(issuer, directory, keyring, verifiers)

    def token(self, authorizations: list[str], content_type: str, body: bytes) -> Answer:
        """One request to the token endpoint. The caller has seen to it that clients and keys are at hand."""
        presented: Presented | None = None
        try:
            form = _form(content_type, body)
            presented = _presented(authorizations, form)
            status, answer, headers = self._server.create_token_response(TokenRequest(self._endpoint, form, presented))
        except OAuth2Error as error:
            status, answer, headers = error()
        client = presented.client if presented and presented.client in self._directory.clients else ""
        return Answer(status, answer, dict(headers), client)


class TokenRequest(OAuth2Request):  # type: ignore[misc]  # authlib has no types
    """Trap 7: Authlib refuses an http URL with an exception that nobody catches, and behind a proxy every request is
    one. So the URL is the configured public one, as https: transport security is the edge's business."""

    def __init__(self, uri: str, form: dict[str, str], presented: Presented | None) -> None:
        super().__init__("POST", uri)
        self.payload = BasicOAuth2Payload(form)
        self.presented = presented


class TokenServer(AuthorizationServer):  # type: ignore[misc]  # authlib has no types
    def __init__(self, issuer: str, directory: Directory, keyring: Keyring, verifiers: Verifiers) -> None:
        super().__init__(scopes_supported=[str(scope) for scope in Scope])
        self._directory = directory
        self._verifiers = verifiers
        self.register_grant(Grant)
        self.register_token_generator("default", AccessTokens(issuer, keyring))
        for method in AUTH_METHODS:
            self.register_client_auth_method(method, _by_secret(method))

    def query_client(self, client_id: str) -> "OAuthClient":
        """Trap 8: never None. An unknown client is one whose secret never matches, with the same text and work."""
        return OAuthClient(self._directory.clients.get(client_id), self._verifiers)

    def authenticate_client(self, request: TokenRequest, methods: list[str], endpoint: str = "token") -> "OAuthClient":
        try:
            client: OAuthClient = super().authenticate_client(request, methods, endpoint)
        except InvalidClientError as error:
            raise ClientRefused() from error
        return client

    def create_oauth2_request(self, request: TokenRequest) -> TokenRequest:
        return request

    def handle_response(self, status: int, body: dict[str, Any], headers: list[tuple[str, str]]) -> Any:
        return status, body, headers

    def save_token(self, token: Any, request: Any) -> None:
        """Nothing: a signed token needs no record."""

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""


class Grant(ClientCredentialsGrant):  # type: ignore[misc]  # authlib has no types
    """RFC 6749 §4.4."""

    TOKEN_ENDPOINT_AUTH_METHODS = AUTH_METHODS


class ClientRefused(InvalidClientError):  # type: ignore[misc]  # authlib has no types
    """RFC 6749 §5.2 `invalid_client`, the same for every cause and always 401."""

    status_code = 401
    description = (
        "Unknown client, wrong secret, or none. Send client_id and client_secret by HTTP Basic or in the form."
    )

    def get_headers(self) -> list[tuple[str, str]]:
        headers = [(name, value) for name, value in super().get_headers() if name != "WWW-Authenticate"]
        return [*headers, ("WWW-Authenticate", 'Basic realm="arriero", charset="UTF-8"')]  # RFC 7617 §2


class OAuthClient(ClientMixin):  # type: ignore[misc]  # authlib has no types
    """A client's record as Authlib wants to see it; `record` None is a client that does not exist."""

    def __init__(self, record: Client | None, verifiers: Verifiers) -> None:
        self.record = record
        self._verifiers = verifiers

    def get_client_id(self) -> str:
        return self.record.id if self.record else ""

    def check_client_secret(self, secret: str) -> bool:
        matches = self._verifiers.matches(secret, self.record.verifiers if self.record else ())
        return matches and self.record is not None and not self.record.disabled

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in AUTH_METHODS

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == GRANT

    def get_allowed_scope(self, scope: str | None) -> str | None:
        """Trap 9. None makes `invalid_scope`. Without the parameter (RFC 6749 §3.3) a client gets its scopes, but what
        changes credentials has to be asked for by name. Asked for one too many, it gets none."""
        has = self.record.scopes if self.record else ()
        asked = set((scope or "").split())
        if not asked <= set(has):
            return None
        granted = [s for s in has if (s in asked if asked else s not in ONLY_WHEN_ASKED)]
        return " ".join(granted) or None


class AccessTokens(JWTBearerTokenGenerator):  # type: ignore[misc]  # authlib has no types
    """RFC 9068 §2: `at+jwt`, signed by the active key alone (trap 2), for five minutes instead of ten days (trap 1)."""

    def __init__(self, issuer: str, keyring: Keyring) -> None:
        super().__init__(issuer, alg=ALGORITHM, expires_generator=lambda client, grant: TOKEN_TTL_S)
        self._keyring = keyring

    def get_jwks(self) -> KeySet:
        assert self._keyring.active is not None, "the route answers 503 before"
        return self._keyring.active

    def get_audiences(self, client: OAuthClient, user: Any, scope: str) -> str:
        return AUDIENCE

    def get_jti(self, client: OAuthClient, grant_type: str, user: Any, scope: str) -> str:
        return secrets.token_urlsafe(16)


def _tls(issuer: str) -> str:
    return "https://" + issuer.partition("://")[2]


def _form(content_type: str, body: bytes) -> dict[str, str]:
    """RFC 6749 §3.2: form-encoded, nothing twice, a parameter without a value counts as left out."""
    if content_type.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise InvalidRequestError("Send the parameters as application/x-www-form-urlencoded.")
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise InvalidRequestError("The body is not form-encoded UTF-8, or has too many parameters.") from error
    form = dict(pairs)
    if len(form) != len(pairs):
        raise InvalidRequestError("A parameter is given twice.")
    form = {name: value for name, value in form.items() if value}
    if "grant_type" not in form:
        raise InvalidRequestError(f"Parameter grant_type is missing: send grant_type={GRANT}.")
    if form["grant_type"] != GRANT:
        raise OAuth2Error(f"This server knows grant_type={GRANT} only.", error="unsupported_grant_type")
    return form


def _presented(authorizations: list[str], form: Mapping[str, str]) -> Presented | None:
    """What the client proves itself with; RFC 6749 §2.3: one method in a request."""
    if len(authorizations) > 1:
        raise InvalidRequestError("There is more than one Authorization header.")
    in_form = form.get("client_id", ""), form.get("client_secret", "")
    if not authorizations:
        return Presented(*in_form, "client_secret_post") if all(in_form) else None
    basic = _basic(authorizations[0])
    if basic is None:
        raise ClientRefused()
    if in_form[1] or in_form[0] not in ("", basic[0]):
        raise InvalidRequestError("Send the client's credentials by HTTP Basic or in the form, not both.")
    return Presented(*basic, "client_secret_basic")


def _basic(authorization: str) -> tuple[str, str] | None:
    """RFC 6749 §2.3.1: id and secret are percent-encoded inside. Authlib's reader lets bytes outside UTF-8 through as an
    exception that becomes a 500."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    client, colon, secret = text.partition(":")
    return (unquote(client), unquote(secret)) if colon else None


def _by_secret(method: str) -> Any:
    def authenticate(query_client: Any, request: TokenRequest) -> OAuthClient | None:
        presented = request.presented
        if presented is None or presented.method != method:
            return None
        client: OAuthClient = query_client(presented.client)
        return client if client.check_client_secret(presented.secret) else None

    return authenticate
