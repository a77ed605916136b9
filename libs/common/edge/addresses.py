"""Where a request comes from, for logs, audit and limits. Pure.

What a proxy adds counts only if the proxy is one of ours, because anybody can send these headers; and only one of the two
headers counts, the one that the proxy writes: the other one it may pass on as the client wrote it.
"""

import ipaddress
import re
from collections.abc import Iterable
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Network = IPv4Network | IPv6Network
_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*("[^"]*"|[^;,\s"]+)\s*(?:;|$)', re.IGNORECASE)  # RFC 7239 §4


class ForwardedBy(StrEnum):
    X_FORWARDED_FOR = "x-forwarded-for"
    FORWARDED = "forwarded"


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Raises ValueError."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def client_address(peer: str, forwarded: list[str], by: ForwardedBy, proxies: tuple[Network, ...]) -> str:
    """The nearest hop that is no proxy of ours. `forwarded`: all values of the header `by`, in their order. What a hop says
    that cannot be read ends the way back there: the address of who said it is the last one known."""
    known = _address(peer)
    if known is None or not _is_proxy(known, proxies):
        return str(known or "")
    for hop in reversed(_hops(forwarded, by)):
        address = _address(hop)
        if address is None:
            break
        known = address
        if not _is_proxy(known, proxies):
            break
    return str(known)


def is_proxy(address: str, proxies: tuple[Network, ...]) -> bool:
    known = _address(address)
    return known is not None and _is_proxy(known, proxies)


def _hops(forwarded: list[str], by: ForwardedBy) -> list[str]:
    parts = ",".join(forwarded).split(",") if forwarded else []
    if by is ForwardedBy.X_FORWARDED_FOR:
        return [part.strip() for part in parts]
    return [found[1].strip('"') if (found := _FOR.search(part.strip())) else "" for part in parts]


def _is_proxy(address: IPv4Address | IPv6Address, proxies: tuple[Network, ...]) -> bool:
    return any(address in network for network in proxies if network.version == address.version)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Also with a port, in brackets, with a zone; an IPv4 address in IPv6's clothes is one of IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
