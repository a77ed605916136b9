"""Where a request comes from, when proxies stand between: a pure function of what the connection and its headers say."""

import ipaddress
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(text: str) -> tuple[Network, ...]:
    """Of addresses and networks (`10.0.0.0/8`), comma separated. Raises ValueError."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def caller(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """The caller's address: the peer's, or when that is a trusted proxy, the last in X-Forwarded-For that is none. What stands
    before it anybody may have written. `forwarded_for`: the header's values, in their order."""
    hops = [hop.strip() for value in forwarded_for for hop in value.split(",")]
    address = peer
    while hops and _trusted(address, trusted):
        hop = _plain(hops.pop())
        if hop is None:
            return address  # a proxy that writes no addresses: nobody behind it can be told apart
        address = hop
    return address


def _trusted(address: str, trusted: Sequence[Network]) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return any((mapped or found) in network for network in trusted)


def _plain(hop: str) -> str | None:
    """Some proxies write a port, or brackets: `192.0.2.1:1234`, `[2001:db8::1]:1234`."""
    candidates = (hop, hop.rpartition(":")[0], hop.strip("[]"), hop.partition("]")[0].lstrip("["))
    for candidate in candidates:
        try:
            return str(ipaddress.ip_address(candidate))
        except ValueError:
            continue
    return None
