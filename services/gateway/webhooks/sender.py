"""One signed request to a receiver, and no way from it into private networks.

The name is looked up once, every address of it must be allowed, and the connection is made to these addresses and no others:
a name that means something else a moment later (rebinding) changes nothing. Just before each connection its address is
checked again, in `_socket`, whatever way it came there. No redirects, cookies, proxies, or connections that are kept.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from services.gateway.webhooks import signing
from services.gateway.webhooks.addresses import Network, is_allowed, is_named
from services.gateway.webhooks.urls import BadUrl, Target, parse_url

WITHIN_S = 10.0  # name, connection, request and answer
MAX_ANSWER = 64 * 1024  # bytes of an answer that are read; what it says is of no interest
LOOKUPS = 8  # at once; a slow name server of somebody's must not hold up other threads
FORBIDDEN = "its name cannot be found, or means an address that webhooks may not reach"

Lookup = Callable[[str, int], Awaitable[list[str]]]  # the addresses of a name; raises OSError


class Outcome(NamedTuple):
    """`reason`: in a few words, empty after a success. `status` 0: there was no answer."""

    status: int
    reason: str = ""
    retry_after: float | None = None

    @property
    def delivered(self) -> bool:
        return 200 <= self.status < 300

    @property
    def gone(self) -> bool:
        return self.status == 410


class Forbidden(OSError):
    """An address that may not be reached."""


class Sender:
    def __init__(
        self,
        networks: tuple[Network, ...] = (),
        *,
        lookup: Lookup | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.networks = networks
        self._threads = ThreadPoolExecutor(LOOKUPS, "webhook-lookup")
        self._lookup = lookup or self._getaddrinfo
        self._ssl = ssl_context

    async def send(self, url: str, secret: str, message: str, body: bytes, *, within: float = WITHIN_S) -> Outcome:
        """Never raises for what a receiver, or the way to it, does."""
        try:
            target = parse_url(url, self.networks)  # again: networks that are named may have changed
        except BadUrl as error:
            return Outcome(0, f"the URL is not taken any more: {error}")
        headers = signing.headers(secret, message, int(time.time()), body) | {
            "Content-Type": "application/json",
            "User-Agent": "Arriero-Webhooks",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        try:
            async with asyncio.timeout(within), self._session(target) as session:
                return await self._post(session, target, headers, body)
        except TimeoutError:
            return Outcome(0, f"no answer within {within:g} s")
        except aiohttp.ClientConnectorDNSError:
            return Outcome(0, FORBIDDEN)
        except (aiohttp.ClientSSLError, ssl.SSLError):
            return Outcome(0, "its TLS certificate or handshake failed")
        except aiohttp.ClientConnectorError as error:
            return Outcome(0, FORBIDDEN if isinstance(error.os_error, Forbidden) else "it cannot be connected to")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Outcome(0, FORBIDDEN if isinstance(error, Forbidden) else "it did not answer as HTTP does")

    @staticmethod
    async def _post(session: aiohttp.ClientSession, target: Target, headers: dict[str, str], body: bytes) -> Outcome:
        async with session.post(target.url, data=body, headers=headers, allow_redirects=False) as answer:
            retry_after = _seconds(answer.headers.get("Retry-After", ""))
            left = MAX_ANSWER
            with contextlib.suppress(aiohttp.ClientError):  # it has answered; how it ends is its own affair
                while left > 0 and (piece := await answer.content.read(left)):
                    left -= len(piece)
            if 300 <= answer.status < 400:
                return Outcome(answer.status, f"it answered {answer.status}; redirects are not followed", retry_after)
            reason = "" if 200 <= answer.status < 300 else f"it answered {answer.status}"
            return Outcome(answer.status, reason, retry_after)

    @contextlib.asynccontextmanager
    async def _session(self, target: Target) -> AsyncIterator[aiohttp.ClientSession]:
        def allowed(address: str) -> bool:
            return (is_allowed if target.scheme == "https" else is_named)(address, self.networks)

        def made(info: tuple[Any, ...]) -> socket.socket:
            family, kind, protocol, _, address = info
            if not allowed(address[0]):
                raise Forbidden(FORBIDDEN)
            return socket.socket(family, kind, protocol)

        connector = aiohttp.TCPConnector(
            resolver=_Pinned(self._lookup, allowed),
            socket_factory=made,
            use_dns_cache=False,
            force_close=True,
            ssl=self._ssl or True,
        )
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as session:
            yield session

    async def _getaddrinfo(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(address[0]) for *_, address in found]


class _Pinned(AbstractResolver):
    """All addresses of a name, if every one of them is allowed."""

    def __init__(self, lookup: Lookup, allowed: Callable[[str], bool]) -> None:
        self._lookup = lookup
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = list(dict.fromkeys(await self._lookup(host, port)))
        if not addresses or not all(self._allowed(address) for address in addresses):
            raise Forbidden(FORBIDDEN)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        pass


def _seconds(text: str) -> float | None:
    """Retry-After in seconds; its other form, a date, is not worth trusting two clocks."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else None
