"""Which addresses a webhook may reach: those of the public Internet, and networks that the operator has named. Pure.

An allow-list, apart from Python's own `is_global`, whose answers changed between releases.
"""

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Network = IPv4Network | IPv6Network

# IANA's special-purpose registries (RFC 6890), multicast, and 6to4 relays.
_NOT_PUBLIC_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
_PUBLIC_6 = IPv6Network("2000::/3")
# Within it: IETF's own (Teredo, ORCHID), documentation, 6to4.
_NOT_PUBLIC_6 = tuple(
    IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
# Where clouds answer any caller with credentials: never, whatever networks are named.
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "168.63.129.16", "192.0.0.192",
                 "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254")
)  # fmt: skip


def is_allowed(text: str, networks: tuple[Network, ...] = ()) -> bool:
    """May a webhook connect to that address? What is no plain address, or has a zone, may not."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return False
    meant = _meant(address)
    if meant in _METADATA or meant.is_multicast or meant.is_unspecified:
        return False
    return is_within(meant, networks) or _is_public(meant)


def is_named(text: str, networks: tuple[Network, ...]) -> bool:
    """Is it in a network that the operator has named (and may be reached)?"""
    return is_allowed(text, networks) and is_within(_meant(ipaddress.ip_address(text)), networks)


def is_within(address: IPv4Address | IPv6Address, networks: tuple[Network, ...]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _meant(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Where a connection to it ends: that of a mapped address, or through NAT64, is IPv4."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return address.is_global and not is_within(address, _NOT_PUBLIC_4)
    return address.is_global and address in _PUBLIC_6 and not is_within(address, _NOT_PUBLIC_6)
