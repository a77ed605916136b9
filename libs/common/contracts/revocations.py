"""What no longer counts before its time: records of the bucket `revoked`, written by auth, watched by whoever checks tokens.

Keys of the bucket: `token.<jti>` and `key.<kid>`, a signing key that was withdrawn at once. A record lives until the last
token that it is about has expired (`Nats-TTL`). Clients and API keys need none: their own record says it.
"""

from libs.common.contracts.codec import Contract, Decoder
from libs.common.contracts.subjects import token


class Revocation(Contract, frozen=True, kw_only=True):
    """`client`: whose token it was; empty for a signing key."""

    client: str = ""
    at: int  # seconds since the epoch
    reason: str = ""


def token_record(jti: str) -> str:
    return f"token.{token(jti, 'jti')}"


def signing_key_record(kid: str) -> str:
    return f"key.{token(kid, 'kid')}"


decode_revocation = Decoder(Revocation)
