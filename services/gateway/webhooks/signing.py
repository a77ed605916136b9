"""Signatures as Standard Webhooks has them: HMAC-SHA-256 over `id.timestamp.body`. Pure, but for new secrets."""

import base64
import hashlib
import hmac
import secrets

PREFIX = "whsec_"
_SECRET_BYTES = 32  # the specification asks for 24 to 64


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signature(secret: str, message: str, timestamp: int, body: bytes) -> str:
    """`message`: its id, which has no dots. `timestamp`: of this attempt, seconds since the epoch."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = b"%b.%d.%b" % (message.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def headers(secret: str, message: str, timestamp: int, body: bytes) -> dict[str, str]:
    return {
        "webhook-id": message,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(secret, message, timestamp, body),
    }


def new_message_id() -> str:
    """Of a message that stands for no job."""
    return f"msg_{secrets.token_hex(13)}"
