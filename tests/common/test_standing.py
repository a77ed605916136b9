"""Whether a client or a key counts."""

from libs.common.contracts.clients import ApiKey, Client, ReplacedSecret
from libs.common.credentials.standing import client_problem, key_problem, key_scopes, secrets_of

CLIENT = Client(id="ann", name="ann", scopes=("jobs:read", "inference"))
KEY = ApiKey(id="k", client="ann", verifier="v")


def test_what_expired_or_was_disabled_does_not_count() -> None:
    assert client_problem(None, 5) == key_problem(None, 5) == "does not exist"
    assert client_problem(CLIENT, 5) is key_problem(KEY, 5) is None
    for made, problem in ((CLIENT, client_problem), (KEY, key_problem)):
        fields = {name: getattr(made, name) for name in made.__struct_fields__}
        assert problem(type(made)(**{**fields, "disabled": True}), 5) == "is disabled"  # type: ignore[arg-type]
        expiring = type(made)(**{**fields, "expires_at": 5})
        assert (problem(expiring, 4.9), problem(expiring, 5)) == (None, "has expired")  # type: ignore[arg-type]


def test_a_key_has_never_more_scopes_than_its_client() -> None:
    assert key_scopes(KEY, CLIENT) == ("jobs:read", "inference")
    bounded = ApiKey(id="k", client="ann", verifier="v", scopes=("inference", "admin:clients"))
    assert key_scopes(bounded, CLIENT) == ("inference",)


def test_a_replaced_secret_counts_until_its_end() -> None:
    client = Client(id="ann", name="ann", verifiers=("new",), replaced=(ReplacedSecret(verifier="old", until=10),))
    assert (secrets_of(client, 9.9), secrets_of(client, 10)) == (("new", "old"), ("new",))
