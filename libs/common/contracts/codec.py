"""JSON in and out of contract structs. Every way of failing to decode becomes `Malformed`."""

from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")

# Default of a field that holds any JSON: falsy, and not sent. (`Raw | None` would decode to nothing but null.)
NO_JSON = msgspec.Raw()

_encoder = msgspec.json.Encoder()


class Malformed(Exception):
    """A message did not hold what its contract says; the text names the path, never the content."""


def encode(value: Any) -> bytes:
    """Raises Malformed on text that is no valid Unicode (a lone surrogate)."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError as error:
        raise Malformed("a string holds a lone surrogate") from error


class Decoder(Generic[T]):
    """A tolerant reader of one struct: unknown fields are skipped."""

    def __init__(self, struct: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(struct)

    def __call__(self, payload: bytes | str) -> T:
        """Raises Malformed."""
        try:
            return self._decoder.decode(payload)
        except msgspec.DecodeError as error:
            raise Malformed(str(error)) from error
        except UnicodeDecodeError as error:  # no MsgspecError; its text would quote the payload
            raise Malformed("invalid UTF-8") from error
        except RecursionError as error:
            raise Malformed("nested too deeply") from error


class Contract(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of everything that travels: defaults are not sent. Subclasses repeat frozen and kw_only, for mypy and msgspec."""
