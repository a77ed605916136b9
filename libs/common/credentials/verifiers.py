"""How secrets are stored: HMAC-SHA-256 under a key derived from the cluster's secret.

Every secret here is 256 random bits, so there is no dictionary to try and a slow hash would buy nothing
(security-and-clients.md §A1.5); the key makes a stolen bucket useless for checking guesses.
"""

import hmac
from collections.abc import Iterable

from libs.common.ids import derive


class Verifiers:
    def __init__(self, cluster_secret: bytes) -> None:
        self._key = derive(cluster_secret, "client-secrets")

    def of(self, secret: str) -> str:
        """The verifier to store, hex."""
        return hmac.digest(self._key, secret.encode("utf-8", "surrogatepass"), "sha256").hex()

    def matches(self, secret: str, verifiers: Iterable[str]) -> bool:
        """In constant time for each verifier. No verifiers at all cost as much as one, so that a caller with an
        unknown id learns nothing from the clock."""
        presented = self.of(secret).encode()
        found = False
        compared = False
        for verifier in verifiers:
            # bytes, because compare_digest refuses text outside ASCII
            found |= hmac.compare_digest(presented, verifier.encode("utf-8", "surrogatepass"))
            compared = True
        if not compared:
            hmac.compare_digest(presented, _NOBODY)
        return found


_NOBODY = b"0" * 64
