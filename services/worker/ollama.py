"""The node's Ollama over HTTP: the only place of this service that speaks it.

httpx runs on aiohttp's transport (measured: per streamed line 10 µs of CPU against 38, DESIGN §2). There is no read
time-out: a load takes minutes without one byte (ollama-facts.md §2.5); the run's own deadline is the limit.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple, TypeVar

import aiohttp
import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport

from libs.common.contracts.codec import Malformed
from libs.common.contracts.events import Event
from libs.common.contracts.nodes import DiskModel, LoadedModel
from libs.common.contracts.requests import Kind
from services.worker.endings import Broke, Ending, Finished, Rejected
from services.worker.lines import Lines
from services.worker.translate import PATHS, error_text, events_of_embedding

T = TypeVar("T")

CONNECT_S = 5.0
INVENTORY_S = 25.0  # /api/ps was measured to stall 20 s behind a wedged engine; slow means suspect, not dead (§3.4)
ERROR_BODY_S = 5.0
END_OF_BODY_S = 1.0
MAX_ERROR_BODY = 64 * 1024
SEND_AT_ONCE = 256 * 1024
# Beyond the slots: runs taken on beside them, inventory, model work, connections that are being closed.
SPARE_CONNECTIONS = 14

# All that can go wrong on the way; the transport lets some of aiohttp's own errors through (an answer that is no HTTP).
TROUBLE = (httpx.HTTPError, httpx.StreamError, aiohttp.ClientError, OSError)


class NodeAway(Exception):
    """The node's Ollama does not answer, or not as Ollama does."""


class NodeRefused(Exception):
    """The node's Ollama said no, in a sentence of its own."""


class Shown(NamedTuple):
    """`template`: Jinja on the native path, Go or a placeholder else (ollama-facts.md §1.4). `prompt_bytes`: DiskModel's."""

    capabilities: tuple[str, ...]
    template: str
    prompt_bytes: int


class Ollama:
    def __init__(self, url: str, *, connections: int) -> None:
        self.url = url
        context = httpx.create_ssl_context(trust_env=False)

        def session() -> aiohttp.ClientSession:
            connector = aiohttp.TCPConnector(limit=connections + SPARE_CONNECTIONS, ssl=context)
            return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

        self._http = httpx.AsyncClient(
            transport=AiohttpTransport(verify=context, trust_env=False, client=session),
            base_url=url,
            timeout=httpx.Timeout(None, connect=CONNECT_S, pool=CONNECT_S),
            # A node bound to loopback refuses foreign Host names (§2.7); the URL's own is what it expects.
            headers={"user-agent": "arriero-worker", "accept-encoding": "identity"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def stream(self, path: str, body: bytes) -> AsyncGenerator[list[Event] | Ending, None]:
        """Yields lists of events, one list per read of the socket, and at last one Ending. Closing it closes the request."""
        try:
            content, headers = _sendable(body)
            async with self._http.stream("POST", path, content=content, headers=headers) as response:
                reads = response.aiter_raw()
                if response.status_code != 200:
                    yield Rejected(response.status_code, error_text(await _error_body(reads)))
                    return
                if path == PATHS[Kind.EMBED]:
                    events, final = events_of_embedding(await response.aread())
                    yield events
                    yield Finished(final)
                    return
                lines = Lines()
                async for read in reads:
                    if events := lines.feed(read):
                        yield events
                    if lines.ending is not None:
                        await _read_out(reads)
                        break
                if events := lines.close():
                    yield events
                assert lines.ending
                yield lines.ending
        except Malformed as error:
            yield Broke(str(error))
        except TROUBLE as error:
            yield Broke(_what_broke(error))

    async def lines(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """What a request about a model answers: one object for a load or an unload, many for a pull (ollama-facts.md §1.8,
        §1.10). Raises NodeRefused, also for an error in the middle, and NodeAway."""
        try:
            async with self._http.stream("POST", path, content=msgspec.json.encode(body), headers=_JSON) as response:
                if response.status_code != 200:
                    raise NodeRefused(error_text(await _error_body(response.aiter_raw())))
                async for text in response.aiter_lines():
                    if not text.strip():
                        continue
                    line = msgspec.json.decode(text, type=dict[str, Any])
                    if "error" in line:
                        raise NodeRefused(error_text(text.encode()))
                    yield line
        except TROUBLE as error:
            raise NodeAway(_what_broke(error)) from error
        except (msgspec.DecodeError, UnicodeError) as error:
            raise NodeAway(f"{path} did not answer as Ollama does") from error

    async def disk_models(self) -> tuple[DiskModel, ...]:
        return tuple(
            DiskModel(
                name=model.name or model.model or "",
                digest=model.digest or "",
                size=model.size or 0,
                family=(model.details and model.details.family) or "",
                parameter_size=(model.details and model.details.parameter_size) or "",
                quantization=(model.details and model.details.quantization_level) or "",
                capabilities=model.capabilities or (),
                modified_at=model.modified_at or "",
            )
            for model in (await self._models("/api/tags"))
        )

    async def loaded_models(self) -> tuple[LoadedModel, ...]:
        return tuple(
            LoadedModel(
                name=model.name or model.model or "",
                digest=model.digest or "",
                size=model.size or 0,
                size_vram=model.size_vram or 0,
                context_length=model.context_length or 0,
                expires_at=model.expires_at or "",
            )
            for model in (await self._models("/api/ps"))
        )

    async def version(self) -> str:
        return (await self._ask("GET", "/api/version", _Version)).version

    async def shown(self, model: str) -> Shown:
        """What /api/show tells of it beyond /api/tags. Raises NodeAway."""
        answer = await self._ask("POST", "/api/show", _Shown, msgspec.json.encode({"model": model}))
        own = len((answer.system or "").encode()) + sum(map(len, answer.messages or ()))
        return Shown(answer.capabilities or (), answer.template or "", own)

    async def rendered(self, path: str, body: bytes) -> str:
        """The prompt that this request would become; loads the model if need be, waits for no slot (§1.13). Raises NodeAway.

        Without a limit, because a load takes minutes: the run's patience is the limit.
        """
        asked = msgspec.json.decode(body) | {"_debug_render_only": True, "stream": False}
        answer = await self._ask("POST", path, _Rendered, msgspec.json.encode(asked), limited=False)
        return answer.debug_info.rendered_template

    async def _models(self, path: str) -> "tuple[_Model, ...]":
        return (await self._ask("GET", path, _Models)).models or ()

    async def _ask(self, method: str, path: str, shape: type[T], body: bytes | None = None, limited: bool = True) -> T:
        """Raises NodeAway."""
        try:
            async with asyncio.timeout(INVENTORY_S if limited else None):
                response = await self._http.request(method, path, content=body, headers=_JSON)
            if response.status_code != 200:
                raise NodeAway(f"{path} answered {response.status_code}")
            return msgspec.json.decode(response.content, type=shape)
        except TROUBLE as error:  # the time-out is one of them
            raise NodeAway(f"{path}: {_what_broke(error)}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NodeAway(f"{path} did not answer as Ollama does") from error


class _Details(msgspec.Struct):
    family: str | None = None
    parameter_size: str | None = None
    quantization_level: str | None = None


class _Model(msgspec.Struct):
    """One entry of /api/tags or /api/ps; what is missing or null in some version is empty."""

    name: str | None = None
    model: str | None = None
    digest: str | None = None
    size: int | None = None
    size_vram: int | None = None
    context_length: int | None = None
    details: _Details | None = None
    capabilities: tuple[str, ...] | None = None
    modified_at: str | None = None
    expires_at: str | None = None


class _Shown(msgspec.Struct):
    """An answer of /api/show."""

    capabilities: tuple[str, ...] | None = None
    template: str | None = None
    system: str | None = None
    messages: tuple[msgspec.Raw, ...] | None = None


class _DebugInfo(msgspec.Struct):
    rendered_template: str


class _Rendered(msgspec.Struct):
    debug_info: _DebugInfo = msgspec.field(name="_debug_info")


class _Models(msgspec.Struct):
    models: tuple[_Model, ...] | None


class _Version(msgspec.Struct):
    version: str


_JSON = {"content-type": "application/json"}


def _sendable(body: bytes) -> tuple[bytes | AsyncIterator[bytes], dict[str, str]]:
    """Large bodies (images) piece by piece: else aiohttp copies them whole into the socket's buffer, and warns of it."""
    if len(body) <= SEND_AT_ONCE:
        return body, _JSON

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), SEND_AT_ONCE):
            yield body[at : at + SEND_AT_ONCE]

    return pieces(), {**_JSON, "content-length": str(len(body))}


async def _read_out(reads: AsyncIterator[bytes]) -> None:
    """To the end of the body, so that the connection can be used again; the answer is whole without it."""
    with contextlib.suppress(*TROUBLE):
        async with asyncio.timeout(END_OF_BODY_S):
            async for _ in reads:
                pass


async def _error_body(reads: AsyncIterator[bytes]) -> bytes:
    """As much of it as comes in time: the status says the most."""
    body = b""
    with contextlib.suppress(*TROUBLE):
        async with asyncio.timeout(ERROR_BODY_S):
            async for read in reads:
                body += read
                if len(body) > MAX_ERROR_BODY:
                    break
    return body


def _what_broke(error: Exception) -> str:
    """For people: without addresses, which are nobody's business outside. The transport's own names mislead: it calls a
    refused or a closed connection a connect time-out."""
    cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
    if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return "the node's Ollama cannot be reached"
    return f"the connection to the node broke ({type(cause).__name__})"
