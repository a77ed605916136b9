"""What a request to an OAuth endpoint brings: its form, and the one thing the client proves itself with (RFC 6749 §2.3)."""

import base64
import binascii
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from authlib.oauth2.rfc6749 import InvalidClientError, InvalidRequestError

from services.auth import assertions

MAX_FIELDS = 20

BASIC, POST, ASSERTION = "client_secret_basic", "client_secret_post", "private_key_jwt"  # RFC 8414's names
AUTH_METHODS = [BASIC, POST, ASSERTION]


class ClientRefused(InvalidClientError):  # type: ignore[misc]  # authlib has no types
    """RFC 6749 §5.2 `invalid_client`, the same for every cause and always 401."""

    status_code = 401
    description = (
        "Unknown client, wrong secret, or none. Send client_id and client_secret by HTTP Basic or in the form, "
        "or a client_assertion."
    )

    def get_headers(self) -> list[tuple[str, str]]:
        headers = [(name, value) for name, value in super().get_headers() if name != "WWW-Authenticate"]
        return [*headers, ("WWW-Authenticate", 'Basic realm="arriero", charset="UTF-8"')]  # RFC 7617 §2


class Presented(NamedTuple):
    """`client`: whoever it says it is. `secret`: a secret, or with private_key_jwt the assertion."""

    client: str
    secret: str
    method: str

    def __repr__(self) -> str:
        return f"Presented(client=…, secret=…, method={self.method!r})"


class Asked(NamedTuple):
    form: dict[str, str]
    presented: Presented | None


def read(authorizations: list[str], content_type: str, body: bytes) -> Asked:
    """Raises OAuth2Error."""
    form = _form(content_type, body)
    return Asked(form, _presented(authorizations, form))


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
    return {name: value for name, value in form.items() if value}


def _presented(authorizations: list[str], form: Mapping[str, str]) -> Presented | None:
    """RFC 6749 §2.3: one method in a request."""
    if len(authorizations) > 1:
        raise InvalidRequestError("There is more than one Authorization header.")
    client, secret = form.get("client_id", ""), form.get("client_secret", "")
    asserted = "client_assertion" in form or "client_assertion_type" in form
    if authorizations:
        basic = _basic(authorizations[0])
        if basic is None:
            raise ClientRefused()
        if secret or asserted or client not in ("", basic[0]):
            raise InvalidRequestError("Send the client's credentials by HTTP Basic or in the form, not both.")
        return Presented(*basic, BASIC)
    if asserted:
        return _asserted(form)
    return Presented(client, secret, POST) if client and secret else None


def _asserted(form: Mapping[str, str]) -> Presented:
    """RFC 7523 §2.2 and RFC 7521 §4.2: the client is the assertion's subject; a client_id must be the same."""
    if form.get("client_assertion_type") != assertions.TYPE:
        raise InvalidRequestError(f"With client_assertion send client_assertion_type={assertions.TYPE}.")
    if "client_secret" in form:
        raise InvalidRequestError("Send a client_secret or a client_assertion, not both.")
    assertion = form.get("client_assertion", "")
    subject = assertions.claimed_subject(assertion)
    if form.get("client_id", subject) != subject:
        raise ClientRefused()
    return Presented(subject, assertion, ASSERTION)


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
