"""Durations as Ollama reads them: Go's text form, and the looser form of `keep_alive`."""

import math
import re

FOREVER = math.inf
"""A keep_alive that never runs out; any negative value means it."""

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")
_GO_TYPES = {bool: "bool", list: "[]interface {}", dict: "map[string]interface {}"}


class BadDuration(ValueError):
    """The text of the error is what Ollama puts into its 400."""


def parse_go_duration(text: str) -> float:
    """Seconds of a Go duration such as `1h30m` or `-1m`; a unit is required except for `0`."""
    body = text[1:] if text[:1] in {"+", "-"} else text
    if body == "0":
        return 0.0
    if not body:
        raise BadDuration(f'time: invalid duration "{text}"')
    seconds, position = 0.0, 0
    while position < len(body):
        part = _PART.match(body, position)
        if part is None:
            raise BadDuration(f'time: invalid duration "{text}"')
        number, unit = part.groups()
        if not unit:
            raise BadDuration(f'time: missing unit in duration "{text}"')
        if unit not in _UNITS:
            raise BadDuration(f'time: unknown unit "{unit}" in duration "{text}"')
        seconds += float(number) * _UNITS[unit]
        position = part.end()
    return -seconds if text[0] == "-" else seconds


def parse_keep_alive(value: object) -> float:
    """Seconds to keep a model after its last request; a JSON number counts seconds, a string needs a unit."""
    if isinstance(value, str):
        seconds = parse_go_duration(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise BadDuration(f"Unsupported type: '{_GO_TYPES.get(type(value), 'interface {}')}'")
    return FOREVER if seconds < 0 else seconds
