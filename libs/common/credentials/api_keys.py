"""The text form of an API key: `arr_<id, 12>_<secret, 43>_<checksum, 6>`, all base 62.

The prefix lets secret scanners find it, the id finds its record in one look-up, the checksum (CRC-32 of what stands
before it) tells a typing mistake from a revoked key without asking anybody. 43 digits of base 62 hold 256 bits.
"""

import re
import secrets
import string
import zlib
from typing import NamedTuple

PREFIX = "arr_"
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
ID_LENGTH, SECRET_LENGTH, CHECKSUM_LENGTH = 12, 43, 6

_FORM = re.compile(r"arr_([0-9A-Za-z]{12})_([0-9A-Za-z]{43})_([0-9A-Za-z]{6})")
_LIKE = re.compile(r"\s*arr_([0-9A-Za-z]*)_")


class ApiKeyText(NamedTuple):
    id: str
    secret: str

    def __str__(self) -> str:
        body = f"{PREFIX}{self.id}_{self.secret}"
        return f"{body}_{_checksum(body)}"

    def __repr__(self) -> str:
        return f"ApiKeyText(id={self.id!r}, secret=…)"  # a NamedTuple would show its secret in every traceback


def new() -> ApiKeyText:
    return ApiKeyText(_random(ID_LENGTH), new_secret())


def new_secret() -> str:
    """43 digits of base 62, from the system's random source: also what an OAuth client's secret is."""
    return _random(SECRET_LENGTH)


def parse(text: str) -> ApiKeyText | None:
    """None for anything that was never issued in this form, a single wrong character included."""
    match = _FORM.fullmatch(text)
    if match is None or _checksum(text[: -CHECKSUM_LENGTH - 1]) != match[3]:
        return None
    return ApiKeyText(match[1], match[2])


def id_of(text: str) -> str:
    """The id in a whole key, mistyped or not; `text` itself when it is none. For where people paste a key and its secret
    must not be kept."""
    match = _LIKE.match(text)
    return match[1] if match else text


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    rest = zlib.crc32(body.encode())
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        rest, digit = divmod(rest, 62)
        digits = ALPHABET[digit] + digits
    return digits
