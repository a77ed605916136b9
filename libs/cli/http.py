"""HTTP to gateway and auth: every failure becomes one sentence."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from libs.cli.failures import CommandFailed
from libs.cli.sse import ServerEvent, read_events

TIMEOUT_S = 30.0
_LOCAL = {"127.0.0.1", "localhost", "::1"}


@contextlib.asynccontextmanager
async def connect(base_url: str, token: str = "") -> AsyncIterator["Http"]:
    """`token`: an access token or an API key; both go as Bearer."""
    headers = {"Authorization": "Bearer " + header("the API key or token", token)} if token else {}
    async with httpx.AsyncClient(
        base_url=base_url,
        headers=headers,
        timeout=httpx.Timeout(TIMEOUT_S, connect=5.0),
        trust_env=urlsplit(base_url).hostname not in _LOCAL,  # a proxy of the surroundings is no way to this machine
    ) as client:
        yield Http(client)


def header(what: str, value: str) -> str:
    """`value`, if a header can carry it. Raises CommandFailed."""
    if not (value.isascii() and value.isprintable()):
        raise CommandFailed(f"{what} has characters that cannot be sent: only printable ASCII can", code="usage")
    return value


class Http:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def call(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The decoded answer, None for an empty one. Raises CommandFailed for whatever is not 2xx."""
        if body is not None:
            more["content"] = msgspec.json.encode(body)
            more["headers"] = {"Content-Type": "application/json", **more.get("headers", {})}
        try:
            response = await self._client.request(method, path, **more)
        except httpx.HTTPError as error:
            raise self._away(error) from error
        if not response.is_success:
            raise refused(response.status_code, response.content)
        if not response.content:
            return None
        try:
            return msgspec.json.decode(response.content)
        except msgspec.MsgspecError as error:
            raise CommandFailed(
                f"{self._client.base_url} answers, but not in JSON: is it Arriero?", code="no_json"
            ) from error

    async def events(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None
    ) -> AsyncIterator[ServerEvent]:
        """The events of a stream until its end. No time-out between them: a model may load for long. Raises CommandFailed."""
        content = None if body is None else msgspec.json.encode(body)
        sent = {
            "Accept": "text/event-stream",
            **({"Content-Type": "application/json"} if content else {}),
            **(headers or {}),
        }
        limits = httpx.Timeout(TIMEOUT_S, connect=5.0, read=None)
        try:
            async with self._client.stream(method, path, content=content, headers=sent, timeout=limits) as response:
                if not response.is_success:
                    raise refused(response.status_code, await response.aread())
                async for event in read_events(response.aiter_bytes()):
                    yield event
        except httpx.HTTPError as error:
            raise self._away(error) from error

    async def lines(self, method: str, path: str, body: Any) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of a stream of lines until its end, without a time-out between them. Raises CommandFailed."""
        limits = httpx.Timeout(TIMEOUT_S, connect=5.0, read=None)
        headers = {"Content-Type": "application/json"}
        content = msgspec.json.encode(body)
        try:
            async with self._client.stream(method, path, content=content, headers=headers, timeout=limits) as response:
                if not response.is_success:
                    raise refused(response.status_code, await response.aread())
                async for text in response.aiter_lines():
                    if text.strip():
                        yield msgspec.json.decode(text, type=dict[str, Any])
        except httpx.HTTPError as error:
            raise self._away(error) from error
        except msgspec.MsgspecError as error:
            raise CommandFailed(f"{self._client.base_url} answers, but not as Arriero does", code="no_json") from error

    async def raw_lines(self, method: str, path: str, query: dict[str, str]) -> AsyncIterator[bytes]:
        """The lines of an answer, byte by byte as they came; each must come within the usual time. Raises CommandFailed."""
        rest = b""
        try:
            async with self._client.stream(method, path, params=query) as response:
                if not response.is_success:
                    raise refused(response.status_code, await response.aread())
                async for piece in response.aiter_bytes():
                    *whole, rest = (rest + piece).split(b"\n")
                    for line in whole:
                        yield line
        except httpx.HTTPError as error:
            raise self._away(error) from error

    def _away(self, error: httpx.HTTPError) -> CommandFailed:
        why = str(error) or type(error).__name__
        return CommandFailed(
            f"no answer from {str(self._client.base_url).rstrip('/')} ({why}): `arriero status` says what runs",
            code="away",
        )


def refused(status: int, body: bytes) -> CommandFailed:
    """What a refusal says, whichever of the three dialects it is in: ours, OpenAI's, OAuth's."""
    try:
        said = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        said = {}
    if not isinstance(said, dict):
        said = {}
    inner = said.get("error")
    if isinstance(inner, dict):
        said = inner
    message = said.get("detail") or said.get("message") or said.get("error_description") or said.get("title")
    code = said.get("code") or (inner if isinstance(inner, str) else "") or f"http_{status}"
    return CommandFailed(str(message or f"refused with status {status}"), code=str(code))
