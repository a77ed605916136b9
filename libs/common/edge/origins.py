"""Which pages of browsers may talk to us, and the headers that tell a browser so (CORS). Pure.

No origin is allowed unless it is listed; requests without an Origin come from programs. Never with credentials: ours travel
in headers that a script sets itself.
"""

import re
from collections.abc import Sequence

from libs.common.edge.hosts import host_of

Headers = list[tuple[bytes, bytes]]

METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
EXPOSED = b"*"  # that is all of them, for requests without credentials in the browser's sense
PREFLIGHT_S = b"600"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{1,5})?")
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9_-]+( *, *[A-Za-z0-9_-]+){0,63}")


def is_origin(text: str) -> bool:
    """`scheme://host[:port]`, lower case; browsers' extensions have one, too. `null` and `*` are none."""
    return _ORIGIN.fullmatch(text) is not None


def is_same(origin: str, host: str) -> bool:
    """Does the page come from here? The scheme does not count: a proxy in front may have taken the TLS off."""
    scheme, _, authority = origin.partition("://")
    if scheme not in ("http", "https") or host_of(authority) is None:
        return False
    return _without_default_port(authority.lower()) == _without_default_port(host.lower())


def _without_default_port(authority: str) -> str:
    return authority.removesuffix(":80").removesuffix(":443")


def allowed(origin: bytes) -> Headers:
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", EXPOSED),
        (b"vary", b"Origin"),
    ]


def preflight(origin: bytes, asked: Sequence[bytes]) -> Headers:
    """`asked`: the values of Access-Control-Request-Headers. Any header is allowed: the origin is trusted."""
    headers = [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-methods", METHODS),
        (b"access-control-max-age", PREFLIGHT_S),
        (b"vary", b"Origin, Access-Control-Request-Headers"),
    ]
    names = b", ".join(asked)
    return [*headers, (b"access-control-allow-headers", names)] if _HEADER_NAMES.fullmatch(names) else headers
