"""Whose name does a request's Host say? Pure.

A page in somebody's browser can let its own name point at an address of our network (DNS rebinding) and then talk to us as
to itself; the Host header still says that name. Names that no stranger can own in the public DNS are fine without being
listed: addresses, names without a dot, and what is set apart for private use: `.localhost` (RFC 6761), `.local` (RFC 6762),
`.internal` (ICANN 2024), `.home.arpa` (RFC 8375).
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

ANY = "*"
_PRIVATE = (".localhost", ".local", ".internal", ".home.arpa")
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(:[0-9]{0,5})?")


class Hosts(NamedTuple):
    """`names` as they stand in a setting: `llm.example.org`, `*.example.org`, or `*` for no check."""

    names: frozenset[str] = frozenset()

    def allow(self, host: str) -> bool:
        """`host` as `host_of` gives it."""
        if host.startswith("[") or "." not in host or host.endswith(_PRIVATE) or _is_address(host):
            return True
        if ANY in self.names or host in self.names:
            return True
        parents = host.split(".")
        return any(f"*.{'.'.join(parents[n:])}" in self.names for n in range(1, len(parents)))


def host_of(authority: str) -> str | None:
    """The host in `host[:port]`, lower case, without a last dot; None if it is neither a name nor an address."""
    found = _AUTHORITY.fullmatch(authority)
    if not found:
        return None
    host = found[1].lower()
    if host.startswith("["):
        return host if _is_address(host[1:-1]) else None
    host = host.removesuffix(".")
    return host if _NAME.fullmatch(host) and len(host) <= 253 else None


def is_name_of_hosts(text: str) -> bool:
    """May it stand in the setting?"""
    return text == ANY or host_of(text.removeprefix("*.")) == text.removeprefix("*.")


def hosts(names: Iterable[str]) -> Hosts:
    return Hosts(frozenset(name for name in names if name))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
