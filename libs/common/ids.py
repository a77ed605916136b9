"""Names that cannot be guessed."""

import base64
import hashlib
import hmac
import secrets
import time

_RANDOM_BYTES = 17  # 26 base32 characters hold 130 bits


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw)[:26].decode().lower()


def new_job_id() -> str:
    return f"job_{_base32(secrets.token_bytes(_RANDOM_BYTES))}"


def keyed_job_id(secret: bytes, client: str, route: str, key: str) -> str:
    """The id that every gateway derives from the same Idempotency-Key; without the cluster's secret nobody can."""
    text = b"\0".join(part.encode("utf-8", "surrogatepass") for part in (client, route, key))
    return f"job_{_base32(hmac.digest(derive(secret, 'idempotency'), text, 'sha256'))}"


def new_op_id() -> str:
    return secrets.token_hex(8)


def new_boot_id() -> str:
    """Of one life of a worker; later boots sort behind earlier ones when clocks behave."""
    return f"{int(time.time()):x}-{secrets.token_hex(4)}"


def derive(secret: bytes, purpose: str) -> bytes:
    """A key of its own for each purpose (HKDF-Expand with one block, RFC 5869 §2.3; the secret is uniformly random)."""
    return hmac.digest(secret, f"arriero/{purpose}".encode() + b"\x01", hashlib.sha256)
