"""Secrets at rest: AES-256-GCM under a key derived from the cluster's secret, one for each purpose."""

import base64
import binascii
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from libs.common.ids import derive

_NONCE_BYTES = 12  # the size GCM is defined for; random, because what is sealed so is sealed a few times in its life


class CannotOpen(Exception):
    """Sealed under another cluster secret, for another purpose or thing, or damaged."""


class Seal:
    def __init__(self, cluster_secret: bytes, purpose: str) -> None:
        self._aead = AESGCM(derive(cluster_secret, purpose))

    def close(self, secret: bytes, *, of: str) -> str:
        """Bound to `of`, a name: a sealed part moved to another thing's record does not open."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return base64.b64encode(nonce + self._aead.encrypt(nonce, secret, of.encode())).decode()

    def open(self, sealed: str, *, of: str) -> bytes:
        """Raises CannotOpen."""
        try:
            raw = base64.b64decode(sealed, validate=True)
            return self._aead.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], of.encode())
        except (InvalidTag, binascii.Error, ValueError) as error:
            raise CannotOpen from error
