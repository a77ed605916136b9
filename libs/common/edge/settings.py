"""Settings of services that listen for clients: who may talk to them, and how long they wait for slow ones."""

import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from libs.common.edge import Edge
from libs.common.edge.addresses import ForwardedBy, networks
from libs.common.edge.front import Rules
from libs.common.edge.hosts import hosts, is_name_of_hosts
from libs.common.edge.limits import HttpLimits
from libs.common.edge.origins import is_origin
from libs.common.settings import ServiceSettings

_LIMITS = HttpLimits()


class HttpSettings(ServiceSettings):
    allowed_hosts: str = Field(
        "",
        description="names of this service beside addresses, names without a dot, and those under .local, .internal, "
        ".home.arpa; comma separated; *.example.org: all below; *: no check",
    )
    cors_origins: str = Field(
        "",
        description="origins whose pages may use it from a browser, such as https://chat.example.org; comma separated",
    )
    trusted_proxies: str = Field(
        "", description="addresses or networks of proxies that say where requests come from, comma separated"
    )
    forwarded_header: ForwardedBy = Field(
        ForwardedBy.X_FORWARDED_FOR, description="the header in which they say so: x-forwarded-for or forwarded"
    )
    max_connections: int = Field(_LIMITS.max_connections, ge=1, description="open connections at once")
    max_connections_per_address: int = Field(
        _LIMITS.max_connections_per_address, ge=0, description="of one address, but trusted proxies; 0: no limit"
    )
    header_timeout: float = Field(
        _LIMITS.header_timeout, gt=0, description="how long the headers of a request may take"
    )
    body_idle_timeout: float = Field(
        _LIMITS.body_idle_timeout, gt=0, description="how long nothing of a request's body may come"
    )
    body_timeout: float = Field(_LIMITS.body_timeout, gt=0, description="how long all of a body may take")
    stalled_timeout: float = Field(
        _LIMITS.stalled_timeout, gt=0, description="how long a client may take nothing of what waits for it"
    )
    min_rate: float = Field(
        _LIMITS.min_rate, ge=0, description="bytes/s that a slow client must send or take; 0: any rate will do"
    )

    @field_validator("allowed_hosts")
    @classmethod
    def _allowed_hosts(cls, value: str) -> str:
        return _each(value, is_name_of_hosts, "give names such as llm.example.org or *.example.org, without port")

    @field_validator("cors_origins")
    @classmethod
    def _cors_origins(cls, value: str) -> str:
        return _each(value, is_origin, "give origins such as https://chat.example.org, one by one; there is no *")

    @field_validator("trusted_proxies")
    @classmethod
    def _trusted_proxies(cls, value: str) -> str:
        return _each(value, _is_network, "give addresses or networks such as 10.0.0.0/8")

    def edge(self, *own_urls: str) -> Edge:
        """`own_urls`: settings that name this service or its like; their hosts are no strangers'."""
        known = [socket.gethostname().lower(), *((urlsplit(url).hostname or "") for url in own_urls)]
        given = {name: getattr(self, name) for name in HttpLimits._fields if name in type(self).model_fields}
        rules = Rules(
            settings=str(self.model_config.get("env_prefix", "")),
            hosts=hosts([*known, *split(self.allowed_hosts)]),
            origins=frozenset(split(self.cors_origins)),
            proxies=networks(split(self.trusted_proxies)),
            forwarded_by=self.forwarded_header,
        )
        return Edge(HttpLimits(**given), rules)


def split(text: str) -> list[str]:
    return [part.strip().lower() for part in text.split(",") if part.strip()]


def _each(value: str, is_good: Callable[[str], bool], what: str) -> str:
    for part in split(value):
        if not is_good(part):
            raise ValueError(f"{part!r} cannot be used: {what}")
    return value


def _is_network(text: str) -> bool:
    try:
        networks([text])
    except ValueError:
        return False
    return True
