"""Defaults of Authlib and joserfc that would be holes here (security-and-clients.md §A1.3), and the rules of RFC 6749 §5.2.

Traps 3, 4, 10 and 11 are the verifier's: tests/gateway/test_credentials_tokens.py. Traps 5 and 6: test_inspection.py; trap 2
after a rotation: test_rotation.py; trap 8 for assertions: test_assertions.py.
"""

import base64
import hmac
import logging
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
from authlib.oauth2.base import invalid_error_characters
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from libs.common.contracts.clients import DEFAULT_SCOPES, Client, ReplacedSecret
from libs.common.credentials.verifiers import Verifiers
from services.auth.oauth import Answer, OAuth

FORM = "application/x-www-form-urlencoded"
GRANT = {"grant_type": "client_credentials"}
VERIFIERS = Verifiers(b"s" * 32)
KEY = ECKey.generate_key("P-256", auto_kid=True)


def oauth(issuer: str = "https://auth.example.org") -> OAuth:
    clients = {
        "alice": Client(id="alice", name="alice", verifiers=(VERIFIERS.of("right"),)),
        "admin-1": Client(
            id="admin-1",
            name="admin-1",
            scopes=(*DEFAULT_SCOPES, "admin:clients"),
            verifiers=(VERIFIERS.of("old"), VERIFIERS.of("new")),
        ),
        "reader": Client(id="reader", name="reader", scopes=("jobs:read",), verifiers=(VERIFIERS.of("right"),)),
        "only": Client(id="only", name="only", scopes=("admin:clients",), verifiers=(VERIFIERS.of("right"),)),
        "replaced": Client(
            id="replaced",
            name="replaced",
            verifiers=(VERIFIERS.of("new"),),
            replaced=tuple(ReplacedSecret(verifier=VERIFIERS.of(old), until=2**33) for old in ("a", "b", "c")),
        ),
        "expired": Client(id="expired", name="expired", verifiers=(VERIFIERS.of("right"),), expires_at=1),
        "keys-only": Client(id="keys-only", name="keys-only"),
        "off": Client(id="off", name="off", verifiers=(VERIFIERS.of("right"),), disabled=True),
    }
    directory: Any = SimpleNamespace(clients=clients)
    keyring: Any = SimpleNamespace(active=KeySet([KEY]))
    return OAuth(issuer, directory, keyring, VERIFIERS)


SERVER = oauth()


def basic(client: str, secret: str) -> list[str]:
    return ["Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode()]


def ask(authorizations: list[str], server: OAuth = SERVER, content_type: str = FORM, **form: str) -> Answer:
    return answer(authorizations, urlencode({**GRANT, **form}).encode(), server, content_type)


def answer(authorizations: list[str], body: bytes, server: OAuth = SERVER, content_type: str = FORM) -> Answer:
    asked = server.read(authorizations, content_type, body)
    return asked if isinstance(asked, Answer) else server.answered(asked, server.issue)


def decoded(answer: Answer) -> jwt.Token:
    assert answer.status == 200, answer
    return jwt.decode(answer.body["access_token"], KEY, algorithms=["ES256"])


def test_a_token_says_what_rfc_9068_asks_for_and_lives_five_minutes() -> None:
    """Trap 1: Authlib's default for client credentials is ten days. Trap 2: a bare key would give no `kid`."""
    before = int(time.time())
    answer = ask(basic("alice", "right"))
    token = decoded(answer)
    assert token.header == {"alg": "ES256", "typ": "at+jwt", "kid": KEY.kid}
    claims = dict(token.claims)
    issued, jti = claims.pop("iat"), claims.pop("jti")
    assert before <= issued <= time.time()
    assert len(jti) >= 20
    assert claims == {
        "iss": "https://auth.example.org",
        "sub": "alice",
        "client_id": "alice",
        "aud": "arriero",
        "exp": issued + 300,
        "scope": " ".join(DEFAULT_SCOPES),
    }
    assert answer.body == {
        "token_type": "Bearer",
        "access_token": answer.body["access_token"],
        "expires_in": 300,
        "scope": " ".join(DEFAULT_SCOPES),
    }
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Pragma"] == "no-cache"


def test_no_two_tokens_have_the_same_id() -> None:
    assert len({decoded(ask(basic("alice", "right"))).claims["jti"] for _ in range(50)}) == 50


def test_credentials_may_come_by_basic_or_in_the_form() -> None:
    for answer in (
        ask(basic("alice", "right")),
        ask(basic("alice", "right"), client_id="alice"),
        ask(["bAsIc " + base64.b64encode(b"%61lice:r%69ght").decode()]),  # RFC 6749 §2.3.1: percent-encoded
        ask([], client_id="alice", client_secret="right"),
        ask(basic("alice", "right"), content_type="Application/X-WWW-Form-URLEncoded; charset=utf-8"),
    ):
        assert decoded(answer).claims["sub"] == "alice"
        assert answer.client == "alice"


def test_both_secrets_count_while_a_secret_is_being_replaced() -> None:
    assert [ask(basic("admin-1", secret)).status for secret in ("old", "new", "older")] == [200, 200, 401]
    assert [ask(basic("replaced", secret)).status for secret in ("new", "a", "b", "c", "d")] == [200] * 4 + [401]


def test_a_plain_http_issuer_behind_a_proxy_is_served() -> None:
    """Trap 7: Authlib raises InsecureTransportError where nobody catches it."""
    token = decoded(ask(basic("alice", "right"), oauth("http://auth:8701")))
    assert token.claims["iss"] == "http://auth:8701"


REFUSALS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "wrong secret, basic": (basic("alice", "wrong"), {}),
    "wrong secret, form": ([], {"client_id": "alice", "client_secret": "wrong"}),
    "unknown client, basic": (basic("nobody", "right"), {}),
    "unknown client, form": ([], {"client_id": "nobody", "client_secret": "right"}),
    "disabled client": (basic("off", "right"), {}),
    "expired client": (basic("expired", "right"), {}),
    "a client without a secret": (basic("keys-only", "0"), {}),
    "no credentials": ([], {}),
    "a public client": ([], {"client_id": "alice"}),
    "an empty secret": (basic("alice", ""), {}),
    "another scheme": (["Bearer abc"], {}),
    "no base64": (["Basic !!!"], {}),
    "no colon": (["Basic " + base64.b64encode(b"alice").decode()], {}),
    "base64 of no UTF-8": (["Basic " + base64.b64encode(b"\xff\xfe:\xff").decode()], {}),
    "not even ASCII": (["Basic é"], {}),
    "an encoded lone surrogate": (basic("alice", "%ED%A0%80"), {}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_every_failed_authentication_is_answered_alike(name: str) -> None:
    """Trap 8: "The client does not exist on this server." would tell which names exist. And RFC 6749 §5.2: a 401 with
    the scheme to use. The odd ones make Authlib's own reader of Basic raise, which would be a 500."""
    authorizations, form = REFUSALS[name]
    answer = ask(authorizations, **form)
    reference = ask(basic("alice", "wrong"))
    assert (answer.status, answer.body, answer.headers) == (401, reference.body, reference.headers)
    assert answer.error == "invalid_client"
    assert answer.headers["WWW-Authenticate"].startswith('Basic realm="')
    assert answer.headers["Cache-Control"] == "no-store"


def test_every_failed_authentication_is_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 8 without a clock: so many hashes and comparisons, of so many bytes, whatever the client has."""
    done: list[tuple[str, int]] = []
    digest, compare = hmac.digest, hmac.compare_digest

    def counted_digest(key: bytes, message: bytes, name: str) -> bytes:
        done.append(("digest", len(message)))
        return digest(key, message, name)

    def counted_compare(one: bytes, other: bytes) -> bool:
        done.append(("compare", len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "digest", counted_digest)
    monkeypatch.setattr(hmac, "compare_digest", counted_compare)
    work = set()
    for client in ("alice", "admin-1", "replaced", "off", "expired", "keys-only", "nobody", "", "\u00fc"):
        done.clear()
        assert ask(basic(client, "wrong"), client_id=client).status == 401
        work.add(tuple(done))
    assert work == {(("digest", 5), *[("compare", 64)] * 4)}


def test_a_strangers_text_is_not_passed_on_as_a_client() -> None:
    """It is logged, and people paste secrets into the wrong field."""
    assert ask(basic("nobody", "x")).client == ""
    assert ask(basic("alice", "x")).client == "alice"


def test_without_a_scope_a_client_gets_its_scopes_but_never_the_administration_of_clients() -> None:
    """Trap 9."""
    assert ask(basic("admin-1", "new")).body["scope"] == " ".join(DEFAULT_SCOPES)
    assert ask(basic("reader", "right")).body["scope"] == "jobs:read"
    assert ask(basic("only", "right")).error == "invalid_scope"
    assert ask(basic("only", "right"), scope="admin:clients").body["scope"] == "admin:clients"
    assert ask(basic("admin-1", "new"), scope="admin:clients").body["scope"] == "admin:clients"


@pytest.mark.parametrize(
    "scope", ["admin:clients", "jobs:read admin:clients", "nonsense", "jobs:read nonsense", "\u00fc"]
)
def test_a_scope_too_many_gives_no_token_at_all(scope: str) -> None:
    answer = ask(basic("alice", "right"), scope=scope)
    assert (answer.status, answer.error) == (400, "invalid_scope")


def test_scopes_come_once_each_whatever_was_asked() -> None:
    assert ask(basic("alice", "right"), scope="jobs:read inference jobs:read").body["scope"] == "inference jobs:read"


BAD_REQUESTS = {
    "no grant_type": (b"scope=inference", "invalid_request"),
    "an empty grant_type": (b"grant_type=", "invalid_request"),
    "another grant": (b"grant_type=password", "unsupported_grant_type"),
    "a grant with quotes": ('grant_type="\u00fc\\'.encode(), "invalid_request"),
    "a grant with quotes, encoded": (urlencode({"grant_type": '"\u00fc\\'}).encode(), "unsupported_grant_type"),
    "a parameter twice": (b"grant_type=client_credentials&scope=inference&scope=inference", "invalid_request"),
    "too many parameters": (b"grant_type=client_credentials" + b"&a=b" * 100, "invalid_request"),
    "no UTF-8": (b"grant_type=client_credentials&scope=%ff", "invalid_request"),
    "raw bytes": (b"grant_type=\xff", "invalid_request"),
    "JSON": (b'{"grant_type": "client_credentials"}', "invalid_request"),
    "nothing": (b"", "invalid_request"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_has_its_code_of_rfc_6749(name: str) -> None:
    body, error = BAD_REQUESTS[name]
    refused = answer(basic("alice", "right"), body)
    assert (refused.status, refused.error) == (400, error)
    assert invalid_error_characters(refused.body["error_description"]) == []
    assert refused.headers["Cache-Control"] == "no-store"


def test_parameters_without_a_value_count_as_left_out() -> None:
    """RFC 6749 §3.2."""
    assert ask(basic("alice", "right"), scope="", client_id="", client_secret="").status == 200


def test_two_ways_of_authentication_in_one_request_are_refused() -> None:
    """RFC 6749 §2.3."""
    for answer in (
        ask(basic("alice", "right"), client_id="alice", client_secret="right"),
        ask(basic("alice", "right"), client_secret="right"),
        ask(basic("alice", "right"), client_id="bob"),
        ask([*basic("alice", "right"), *basic("alice", "right")]),
    ):
        assert (answer.status, answer.error) == (400, "invalid_request")


def test_other_content_types_are_refused() -> None:
    for content_type in ("application/json", "multipart/form-data; boundary=x", ""):
        assert ask(basic("alice", "right"), content_type=content_type).error == "invalid_request"


def test_authlib_cannot_be_talked_into_logging_tokens() -> None:
    """It writes "Issue token {…}" at debug level."""
    assert not logging.getLogger("authlib.oauth2.rfc6749.grants.client_credentials").isEnabledFor(logging.DEBUG)


def test_the_deprecated_half_of_authlib_is_not_loaded() -> None:
    """Trap 12: `authlib.jose` goes away with 2.0. In a process of its own, because imports stay."""
    code = "import services.auth.main, services.gateway.credentials, sys; sys.exit('authlib.jose' in sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
