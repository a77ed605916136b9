"""Which credential a request carries: a pure function of its raw headers.

Accepted, because each is all that some tool can send (security-and-clients.md §A1.9): `Authorization: Bearer <access token
or API key>`, `x-api-key` and `api-key` with either, and `Authorization: Basic <anything>:<API key>`.
"""

import base64
import binascii
from typing import NamedTuple

from libs.common.contracts.faults import Code, Failed, failed
from libs.common.credentials import api_keys
from libs.common.credentials.api_keys import ApiKeyText
from libs.common.credentials.tokens import MAX_LENGTH

Headers = list[tuple[bytes, bytes]]

HOW = "Send `Authorization: Bearer <API key or access token>` or `x-api-key: <API key>`."


class AccessToken(NamedTuple):
    """Looks like one; nothing has been checked."""

    text: str

    def __repr__(self) -> str:
        return "AccessToken(…)"


def extract(headers: Headers) -> ApiKeyText | AccessToken:
    """Names in lower case, as ASGI has them. Raises Failed: INVALID_REQUEST for two different credentials, else
    UNAUTHENTICATED. The same one in several headers is fine: Claude Code's helper sends its key twice."""
    presented: set[bytes] = set()
    problems: list[Failed] = []
    for name, value in headers:
        if name == b"authorization":
            try:
                presented.add(_from_authorization(value.strip()))
            except Failed as error:
                problems.append(error)
        elif name == b"x-api-key" or name == b"api-key":
            presented.add(value.strip())
    presented.discard(b"")  # a header without a value is what tools send whose key is not configured
    if len(presented) + len(problems) > 1:
        raise failed(Code.INVALID_REQUEST, "The request carries two different credentials; send only one of them.")
    if problems:
        raise problems[0]
    if not presented:
        raise _unauthenticated(f"There is no credential in the request. {HOW}")
    return _parse(presented.pop())


def _from_authorization(value: bytes) -> bytes:
    scheme, _, rest = value.partition(b" ")
    match scheme.lower():  # RFC 9110 §11.1: schemes are case-insensitive
        case b"bearer" | b"":
            return rest.strip()
        case b"basic":
            return _password(rest.strip())
    raise _unauthenticated(f"The Authorization header does not begin with Bearer or Basic. {HOW}")


def _password(encoded: bytes) -> bytes:
    """RFC 7617 §2: the password is what stands behind the first colon."""
    try:
        _, colon, password = base64.b64decode(encoded, validate=True).partition(b":")
    except binascii.Error as error:
        raise _unauthenticated(f"The Basic credentials are not valid base64. {HOW}") from error
    if not colon or not password.startswith(api_keys.PREFIX.encode()):
        raise _unauthenticated("With HTTP Basic the password must be an API key; the user name does not matter.")
    return password


def _parse(presented: bytes) -> ApiKeyText | AccessToken:
    if len(presented) > MAX_LENGTH or not presented.isascii():
        raise _unauthenticated(f"The credential is neither an API key nor an access token. {HOW}")
    text = presented.decode("ascii")
    if text.startswith(api_keys.PREFIX):
        key = api_keys.parse(text)
        if key is None:
            raise _unauthenticated("The API key is damaged: copy it again, all 67 characters of it.")
        return key
    if text.count(".") == 2:
        return AccessToken(text)
    raise _unauthenticated(f"The credential is neither an API key nor an access token. {HOW}")


def _unauthenticated(message: str) -> Failed:
    return failed(Code.UNAUTHENTICATED, message)
