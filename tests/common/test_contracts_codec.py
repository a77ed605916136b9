"""Decoding what nobody of good will sends."""

import pytest

from libs.common.contracts.codec import Malformed
from libs.common.contracts.events import decode_event


def test_nesting_without_end_is_malformed_and_not_a_crash() -> None:
    """DESIGN §7.9: whoever sends it gets an error; the reader of a stream goes on."""
    deep = b'{"unknown":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(Malformed, match="nested"):
        decode_event(deep)
