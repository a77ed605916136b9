"""What refusing a client costs, by why it is refused: medians in one process, without HTTP. They should not differ.

python -m bench.authentication [--tries 2000]
"""

import argparse
import base64
import random
import statistics
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from libs.common.contracts.clients import Client, ReplacedSecret
from libs.common.credentials.verifiers import Verifiers
from services.auth.assertions import TYPE
from services.auth.oauth import OAuth

ISSUER, FORM = "https://auth.example.org", "application/x-www-form-urlencoded"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=2000)
    tries = parser.parse_args().tries
    verifiers = Verifiers(b"s" * 32)
    key, stranger = (ECKey.generate_key("P-256", {"kid": "k"}) for _ in range(2))
    replaced = tuple(ReplacedSecret(verifier=verifiers.of(str(n)), until=2**33) for n in range(3))
    clients = {
        client.id: client
        for client in (
            Client(id="one-secret", name="a", verifiers=(verifiers.of("right"),)),
            Client(id="many-secrets", name="b", verifiers=(verifiers.of("right"),), replaced=replaced),
            Client(id="disabled", name="c", verifiers=(verifiers.of("wrong"),), disabled=True),
            Client(id="keys-only", name="d", jwks=(dict(key.as_dict(private=False)),)),
        )
    }
    directory: Any = SimpleNamespace(clients=clients)
    keyring: Any = SimpleNamespace(active=KeySet([ECKey.generate_key("P-256", auto_kid=True)]))
    oauth = OAuth(ISSUER, directory, keyring, verifiers)

    def secret(client: str) -> tuple[list[str], bytes]:
        basic = "Basic " + base64.b64encode(f"{client}:wrong".encode()).decode()
        return [basic], urlencode({"grant_type": "client_credentials"}).encode()

    def assertion(client: str) -> tuple[list[str], bytes]:
        claims = {"iss": client, "sub": client, "aud": ISSUER, "jti": "1", "exp": int(time.time()) + 200}
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": TYPE,
            "client_assertion": jwt.encode({"alg": "ES256", "kid": "k"}, claims, stranger),
        }
        return [], urlencode(form).encode()

    cases = {f"secret, {client}": secret(client) for client in ("nobody", *clients)}
    cases |= {f"assertion, {client}": assertion(client) for client in ("nobody", *clients)}
    taken: dict[str, list[float]] = {name: [] for name in cases}
    turns = list(cases.items())
    for _ in range(tries):
        random.shuffle(turns)  # what the machine does besides, and what went before, falls on all alike
        for name, (authorizations, body) in turns:
            begun = time.perf_counter()
            answer = oauth.token(authorizations, FORM, body)
            taken[name].append(time.perf_counter() - begun)
            assert answer.status == 401, name
    for name, times in taken.items():
        print(f"{name:28}{statistics.median(times) * 1e6:8.1f} µs")


if __name__ == "__main__":
    main()
