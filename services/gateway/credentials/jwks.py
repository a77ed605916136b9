"""The issuer's public keys, fetched over HTTP and kept.

All fetching is done by one task (`run`), so there is never more than one request under way, and callers wait for its
outcome. What has been fetched stays in use while auth is away: only a successful answer replaces it.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import httpx
import msgspec
import structlog
from httpx_aiohttp import AiohttpTransport
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from libs.common.credentials.tokens import ALGORITHM

log = structlog.get_logger()

REFRESH_S = 300.0  # what auth allows in Cache-Control; a key is published that long before it signs
FIRST_RETRIES_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # until the first success, then over and over the last
RETRY_S = 15.0  # after a failed refresh, while the last good keys serve
TIMEOUT_S = 3.0
UNKNOWN_KID_S = 60.0  # how long a kid that a fetch did not bring is not asked for again
BETWEEN_FETCHES_S = 1.0  # however many different kids strangers make up
MAX_UNKNOWN = 1024
MAX_BODY = 256 * 1024


class Unusable(Exception):
    """The answer holds no key that we can use."""


class Jwks:
    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.keys: dict[str, ECKey] = {}
        self._url = url
        self._clock = clock
        self._fetched_at = float("-inf")  # the end of the last attempt
        self._unknown: OrderedDict[str, float] = OrderedDict()  # kid → when it was looked for in vain
        self._wanted = asyncio.Event()
        self._attempt: asyncio.Future[bool] | None = None  # whether the next attempt succeeded, once it has ended

    @property
    def loaded(self) -> bool:
        return bool(self.keys)

    def check(self) -> str | None:
        return None if self.loaded else f"no signing keys yet from {self._url}"

    async def look_for(self, kid: str) -> bool:
        """Whether `kid` is known, perhaps after fetching once more. At most once a minute for each kid, and once a
        second for all: tokens with made-up kids cost auth next to nothing."""
        if kid in self.keys:
            return True
        now = self._clock()
        if now - self._unknown.get(kid, float("-inf")) < UNKNOWN_KID_S or now - self._fetched_at < BETWEEN_FETCHES_S:
            return False
        fetched = await self._fetch_now()
        if kid in self.keys:
            return True
        if fetched:  # what auth did not answer it may still know
            self._unknown[kid] = self._clock()
            self._unknown.move_to_end(kid)
            if len(self._unknown) > MAX_UNKNOWN:
                self._unknown.popitem(last=False)
        return False

    async def run(self) -> NoReturn:
        failures = 0
        async with httpx.AsyncClient(transport=AiohttpTransport(), timeout=TIMEOUT_S) as http:
            while True:
                attempt, self._attempt = self._attempt, None
                self._wanted.clear()
                fetched = False
                try:
                    self.keys = await _fetch(http, self._url)
                    fetched, failures, pause = True, 0, REFRESH_S
                except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, Unusable) as error:
                    why = str(error) or type(error).__name__
                    log.warning("jwks.fetch_failed", url=self._url, error=why, keys=len(self.keys))
                    pause = RETRY_S if self.loaded else FIRST_RETRIES_S[min(failures, len(FIRST_RETRIES_S) - 1)]
                    failures += 1
                finally:
                    self._fetched_at = self._clock()
                    if attempt and not attempt.done():
                        attempt.set_result(fetched)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), pause)

    async def _fetch_now(self) -> bool:
        """Waits for the next attempt, shared with everybody else who waits; whether it succeeded. An attempt under way
        does not do: it may have been answered before the key was published."""
        if self._attempt is None:
            self._attempt = asyncio.get_running_loop().create_future()
        attempt = self._attempt
        self._wanted.set()
        await asyncio.wait([attempt], timeout=2 * TIMEOUT_S + 1)
        return attempt.done() and attempt.result()


async def _fetch(http: httpx.AsyncClient, url: str) -> dict[str, ECKey]:
    """Raises httpx.HTTPError, TimeoutError, Unusable."""
    async with asyncio.timeout(TIMEOUT_S):
        async with http.stream("GET", url) as response:
            response.raise_for_status()
            body = b""
            async for part in response.aiter_bytes():
                body += part
                if len(body) > MAX_BODY:
                    raise Unusable(f"more than {MAX_BODY} bytes")
    return read(body)


def read(body: bytes) -> dict[str, ECKey]:
    """The keys of a JWKS that we can use, by kid; RFC 7517 §5: those we do not understand are skipped. Raises Unusable
    when none is left."""
    try:
        listed: Any = msgspec.json.decode(body)["keys"]
        usable = [key for key in listed if key.get("kty") == "EC" and key.get("crv") == "P-256"]
        usable = [key for key in usable if key.get("use", "sig") == "sig" and key.get("alg", ALGORITHM) == ALGORITHM]
        keys = {key["kid"]: ECKey.import_key(key) for key in usable if isinstance(key.get("kid"), str)}
    except (msgspec.DecodeError, JoseError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unusable(f"not a JWKS: {type(error).__name__}") from error
    if not keys:
        raise Unusable("no key for ES256 in it")
    return keys
