"""Nkeys: Ed25519 key pairs as NATS writes them. The server knows the public key only; a connection proves that it has the
seed by signing what the server just made up, so that neither the server's files nor the wire hold anything to steal."""

import os
import re

import nkeys

SEED = re.compile(r"SU[A-Z2-7]{56}")
PUBLIC = re.compile(r"U[A-Z2-7]{55}")


class BadNkey(ValueError):
    """The text is for a human, and never holds the seed."""


def new_seed() -> str:
    """The seed of a user's key pair: a secret."""
    return _encoded(os.urandom(32))


def public_key(seed: str) -> str:
    """Of a user's seed. Raises BadNkey."""
    try:
        if not SEED.fullmatch(seed):
            raise BadNkey
        found: str = nkeys.from_seed(bytearray(seed, "ascii")).public_key.decode()
        if _encoded(nkeys.decode_seed(seed.encode())[1]) != seed:
            raise BadNkey  # its checksum does not fit; the library does not look
    except (ValueError, nkeys.NkeysError) as error:
        raise BadNkey(
            "not the seed of a NATS user: it has 58 characters, begins with SU, and none may be mistyped"
        ) from error
    return found


def is_public(text: str) -> bool:
    """Does it look like a user's public key? (nats-server checks the rest.)"""
    return PUBLIC.fullmatch(text) is not None


def _encoded(raw: bytes) -> str:
    seed: bytes = nkeys.encode_seed(raw, nkeys.PREFIX_BYTE_USER)
    return seed.decode()
