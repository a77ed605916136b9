"""One streamed answer of /v1/chat/completions, piece by piece."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from libs.cli.failures import CommandFailed
from libs.cli.http import Http


class Piece(msgspec.Struct, frozen=True):
    text: str
    thinking: bool = False


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Error(msgspec.Struct):
    message: str = ""
    code: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Error | None = None


async def answer(http: Http, model: str, messages: list[dict[str, Any]], **more: Any) -> AsyncIterator[Piece]:
    """Raises CommandFailed, also for an answer that ends without saying so."""
    body = {"model": model, "messages": messages, "stream": True, **more}
    async for event in http.events("POST", "/v1/chat/completions", body):
        if event.data == "[DONE]":
            return
        try:
            chunk = msgspec.json.decode(event.data, type=_Chunk)
        except msgspec.MsgspecError:
            continue  # an event of a kind that did not exist when this was written
        if chunk.error:
            raise CommandFailed(chunk.error.message or "the answer failed", code=chunk.error.code or "failed")
        for choice in chunk.choices:
            if thought := choice.delta.reasoning or choice.delta.reasoning_content:
                yield Piece(thought, thinking=True)
            if choice.delta.content:
                yield Piece(choice.delta.content)
    raise CommandFailed("the answer was cut off", code="interrupted")
