"""The node's Ollama over HTTP: the only place of this service that speaks it.

httpx runs on aiohttp's transport (measured: per streamed line 10 µs of CPU against 38, DESIGN §2). There is no read
time-out: a load takes minutes without one byte (ollama-facts.md §2.5); the run's own deadline is the limit.
"""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport

from libs.common.contracts.codec import Malformed
from libs.common.contracts.nodes import DiskModel, LoadedModel
from services.worker.endings import Broke, Ending, Finished, Rejected
from services.worker.translate import NodeSaid, error_text, events_of_embedding, events_of_line

CONNECT_S = 5.0
INVENTORY_S = 15.0  # /api/ps was measured to stall 10 s behind a wedged engine; slow means suspect, not dead (§3.6)
MAX_ERROR_BODY = 64 * 1024
MAX_LINE = 64 * 1024 * 1024


class NodeAway(Exception):
    """The node's Ollama does not answer, or not as Ollama does."""


class Ollama:
    def __init__(self, url: str, *, connections: int) -> None:
        self.url = url
        limits = httpx.Limits(max_connections=connections + 8, max_keepalive_connections=connections + 8)
        self._http = httpx.AsyncClient(
            transport=AiohttpTransport(limits=limits, trust_env=False),
            base_url=url,
            timeout=httpx.Timeout(None, connect=CONNECT_S, pool=CONNECT_S),
            # A node bound to loopback refuses foreign Host names (§2.7); the URL's own is what it expects.
            headers={"user-agent": "arriero-worker", "accept-encoding": "identity"},
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def stream(self, path: str, body: bytes) -> AsyncIterator[list[Any] | Ending]:
        """Yields lists of events, one list per read of the socket, and at last one Ending. Closing it closes the request."""
        try:
            async with self._http.stream("POST", path, content=body, headers=_JSON) as response:
                if response.status_code != 200:
                    yield Rejected(response.status_code, error_text(await _limited(response)))
                    return
                if path == "/api/embed":
                    events, final = events_of_embedding(await response.aread())
                    yield events
                    yield Finished(final)
                    return
                async for item in _lines(response):
                    yield item
        except (NodeSaid, Malformed) as error:
            yield Broke(str(error))
        except httpx.ConnectError:
            yield Broke(f"cannot connect to {self.url}")
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            yield Broke(f"the connection to the node broke: {type(error).__name__}")

    async def version(self) -> str:
        return str((await self._get("/api/version")).get("version", ""))

    async def disk_models(self) -> tuple[DiskModel, ...]:
        found = []
        for model in (await self._get("/api/tags")).get("models") or []:
            details = model.get("details") or {}
            found.append(
                DiskModel(
                    name=model.get("name") or model.get("model") or "",
                    digest=model.get("digest") or "",
                    size=model.get("size") or 0,
                    family=details.get("family") or "",
                    parameter_size=details.get("parameter_size") or "",
                    quantization=details.get("quantization_level") or "",
                    capabilities=tuple(model.get("capabilities") or ()),
                    modified_at=model.get("modified_at") or "",
                )
            )
        return tuple(found)

    async def loaded_models(self) -> tuple[LoadedModel, ...]:
        return tuple(
            LoadedModel(
                name=model.get("name") or "",
                digest=model.get("digest") or "",
                size=model.get("size") or 0,
                size_vram=model.get("size_vram") or 0,
                context_length=model.get("context_length") or 0,
                expires_at=model.get("expires_at") or "",
            )
            for model in (await self._get("/api/ps")).get("models") or []
        )

    async def capabilities(self, model: str) -> tuple[str, ...]:
        """From /api/show, for versions whose /api/tags do not tell."""
        answer = await self._json("POST", "/api/show", msgspec.json.encode({"model": model}))
        return tuple(answer.get("capabilities") or ())

    async def _get(self, path: str) -> dict[str, Any]:
        return await self._json("GET", path)

    async def _json(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, content=body, headers=_JSON, timeout=INVENTORY_S)
            response.raise_for_status()
            return msgspec.json.decode(response.content, type=dict[str, Any])
        except httpx.HTTPStatusError as error:
            raise NodeAway(f"{path} answered {error.response.status_code}") from error
        except (httpx.HTTPError, OSError) as error:
            raise NodeAway(f"{path}: {type(error).__name__}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NodeAway(f"{path} did not answer as Ollama does") from error


_JSON = {"content-type": "application/json"}


async def _lines(response: httpx.Response) -> AsyncIterator[list[Any] | Ending]:
    """Success is the terminal marker, never a mere end of the body (ollama-facts.md §2.4)."""
    rest = b""
    final: dict[str, Any] | None = None
    async for read in response.aiter_raw():
        if final is not None:
            continue  # read to the end of the body, so that the connection can be used again
        *lines, rest = (rest + read).split(b"\n")
        if len(rest) > MAX_LINE:
            raise Malformed("the node sent a line without end")
        events: list[Any] = []
        for raw in lines:
            if not raw.strip():
                continue
            found, final = events_of_line(raw)
            events += found
            if final is not None:
                break
        if events:
            yield events
    if final is None and rest.strip():
        found, final = events_of_line(rest)
        if found:
            yield found
    yield Finished(final) if final is not None else Broke("the node's stream ended without its final line")


async def _limited(response: httpx.Response) -> bytes:
    body = b""
    async for read in response.aiter_raw():
        body += read
        if len(body) > MAX_ERROR_BODY:
            break
    return body
