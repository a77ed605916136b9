"""What counts as the URL of a receiver. Pure.

One strict grammar of ASCII and nothing else, so that no two parsers can read two hosts out of one URL: what passes here is
put together again from its parts, and only that is ever requested.
"""

import ipaddress
import re
from typing import NamedTuple

from services.gateway.webhooks.addresses import Network, is_allowed, is_named

MAX_URL = 2048
_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z.-]{1,253})"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?"
    r"(?:\?(?P<query>[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*))?",
    re.ASCII,
)
_LABEL = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*", re.ASCII)  # the last label of what other parsers take for IPv4
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
WEB_PORTS = (80, 443)  # below 1024 no others: nothing that listens there waits for a webhook


class BadUrl(ValueError):
    """Says what is wrong with it, and never repeats it: a URL may hold a secret."""


class Target(NamedTuple):
    scheme: str
    host: str  # a name in small letters, or an address without brackets
    port: int
    path: str  # with the query

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return f"{self.scheme}://{host}{'' if self.port == default else f':{self.port}'}{self.path}"


def parse_url(text: str, networks: tuple[Network, ...] = ()) -> Target:
    """Raises BadUrl. Of a name only its form is checked: what it stands for is looked up for each delivery."""
    if len(text) > MAX_URL:
        raise BadUrl(f"it has more than {MAX_URL} characters")
    found = _URL.fullmatch(text)
    if found is None or _ESCAPE.search(text):
        raise BadUrl(
            "it must look like https://hooks.example.org/path, in ASCII (a name of other letters as xn--…), without user, "
            "password or fragment"
        )
    host = found["host"].lower()
    is_address = host.startswith("[") or _NUMBER.fullmatch(host.rpartition(".")[2]) is not None
    host = _address(host) if is_address else _name(host)
    if is_address and not is_allowed(host, networks):
        raise BadUrl("its address is none of the public Internet")
    if found["scheme"] == "http":
        if not networks:
            raise BadUrl("it must begin with https://")
        if is_address and not is_named(host, networks):
            raise BadUrl("http:// is only for networks that this Arriero's operator has named; use https://")
    port = int(found["port"] or (443 if found["scheme"] == "https" else 80))
    if port > 65535 or (port < 1024 and port not in WEB_PORTS):
        raise BadUrl("its port must be 443, 80, or one from 1024 to 65535")
    query = f"?{found['query']}" if found["query"] is not None else ""
    return Target(found["scheme"], host, port, (found["path"] or "/") + query)


def _address(host: str) -> str:
    """Only the usual form: 127.1, 0x7f000001, 2130706433 and 0177.0.0.1 are refused, not understood."""
    try:
        if host.startswith("["):
            return str(ipaddress.IPv6Address(host[1:-1]))
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise BadUrl("an address in it must have the usual form, such as 203.0.113.7 or [2001:db8::7]") from None


def _name(host: str) -> str:
    if not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise BadUrl("its host is no name; a dot at the end is not taken either")
    return host
