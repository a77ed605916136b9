"""Which credential a request carries: every form that a tool can send, and everything else refused with a sentence."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.faults import Code, Failed
from libs.common.credentials import api_keys
from libs.common.credentials.api_keys import ApiKeyText
from services.gateway.credentials.extract import AccessToken, Headers, extract

KEY = ApiKeyText("0123456789ab", "s" * 43)
OTHER = ApiKeyText("0123456789ab", "t" * 43)
TEXT = str(KEY).encode()
TOKEN = b"eyJhbGciOiJFUzI1NiJ9.e30.c2ln"


def basic(user: bytes, password: bytes) -> bytes:
    return b"Basic " + base64.b64encode(user + b":" + password)


def refused(headers: Headers) -> Code:
    with pytest.raises(Failed) as caught:
        extract(headers)
    fault = caught.value.fault
    assert fault.message.endswith(".")
    for _, value in headers:  # what was sent may be somebody's secret
        assert len(value) < 8 or value.decode("latin-1") not in fault.message
    return fault.code


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer " + TEXT)],
        [(b"authorization", b"bEARER   " + TEXT + b" ")],
        [(b"x-api-key", TEXT)],
        [(b"api-key", b" " + TEXT)],
        [(b"authorization", basic(b"anything", TEXT))],
        [(b"authorization", basic(b"", TEXT))],
        [(b"authorization", b"Bearer " + TEXT), (b"x-api-key", TEXT), (b"api-key", TEXT)],
        [(b"authorization", basic(b"me", TEXT)), (b"x-api-key", TEXT)],
        [(b"authorization", b"Bearer "), (b"x-api-key", TEXT)],
        [(b"authorization", b""), (b"x-api-key", TEXT), (b"api-key", b"")],
        [(b"host", b"x"), (b"cookie", b"authorization=Bearer y"), (b"x-api-key", TEXT), (b"x-api-keys", b"z")],
    ],
)
def test_an_api_key_is_found_in_every_place_where_tools_put_it(headers: Headers) -> None:
    assert extract(headers) == KEY


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key", b"api-key"])
def test_an_access_token_is_found(name: bytes) -> None:
    value = b"Bearer " + TOKEN if name == b"authorization" else TOKEN
    found = extract([(name, value)])
    assert found == AccessToken(TOKEN.decode())
    assert TOKEN.decode() not in repr(found)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer " + TEXT), (b"x-api-key", str(OTHER).encode())],
        [(b"authorization", b"Bearer " + TEXT), (b"authorization", b"Bearer " + TOKEN)],
        [(b"authorization", b"Bearer " + TOKEN), (b"x-api-key", TEXT)],
        [(b"x-api-key", TEXT), (b"api-key", b"something else")],
        [(b"authorization", basic(b"me", str(OTHER).encode())), (b"x-api-key", TEXT)],
        [(b"authorization", b"Digest abc"), (b"x-api-key", TEXT)],
    ],
)
def test_two_different_credentials_are_not_chosen_between(headers: Headers) -> None:
    assert refused(headers) is Code.INVALID_REQUEST
    assert refused(headers[::-1]) is Code.INVALID_REQUEST


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"x-api-key", b"   ")],
        [(b"authorization", TEXT)],
        [(b"authorization", b"Bearer sk-1234567890")],
        [(b"authorization", b"Bearer a.b")],
        [(b"authorization", b"Bearer a.b.c.d")],
        [(b"authorization", b"Bearer \xff.\xff.\xff")],
        [(b"authorization", b"Bearer " + b"a." * 2 + b"a" * 5000)],
        [(b"authorization", b"Digest username=x")],
        [(b"authorization", b"Basic !!!")],
        [(b"authorization", b"Basic " + base64.b64encode(b"no colon"))],
        [(b"authorization", basic(b"alice", b"a password"))],
        [(b"authorization", basic(b"alice", TOKEN))],
        [(b"authorization", basic(TEXT, b""))],
        [(b"x-api-key", TEXT[:-1])],
        [(b"x-api-key", TEXT[:-1] + b"?")],
        [(b"x-api-key", TEXT + b"\x00")],
    ],
)
def test_nothing_usable_is_unauthenticated(headers: Headers) -> None:
    assert refused(headers) is Code.UNAUTHENTICATED


interesting = st.one_of(
    st.binary(max_size=80),
    st.just(TEXT),
    st.just(TOKEN),
    st.binary(max_size=60).map(lambda raw: b"Basic " + base64.b64encode(raw)),
    st.binary(max_size=60).map(lambda raw: b"Bearer " + raw),
    st.just(b"Bearer " + TEXT),
    st.just(basic(b"me", TEXT)),
)
names = st.sampled_from([b"authorization", b"x-api-key", b"api-key", b"accept", b"cookie"])


@given(st.lists(st.tuples(names, interesting), max_size=5))
def test_any_headers_give_a_credential_or_a_401_or_a_400(headers: Headers) -> None:
    code: Code | None = None
    try:
        found = extract(headers)
    except Failed as error:
        code = error.fault.code
    else:
        assert isinstance(found, AccessToken) or api_keys.parse(str(found)) == found
    assert code in (None, Code.UNAUTHENTICATED, Code.INVALID_REQUEST)


@given(st.lists(st.tuples(st.sampled_from([b"accept", b"cookie", b"x-forwarded-for"]), interesting), max_size=4))
def test_other_headers_do_not_matter(others: Headers) -> None:
    assert extract([*others, (b"x-api-key", TEXT), *others]) == KEY
