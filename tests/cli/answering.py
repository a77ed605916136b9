"""A stand-in for gateway and auth: an ASGI application that answers from a table and remembers what it was asked."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from tests.support.http import free_socket, served


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    query: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """`pieces` are sent one by one; `cut`: the connection ends without the end of the body."""

    status: int = 200
    pieces: list[bytes] = field(default_factory=list)
    cut: bool = False


def as_json(body: Any, status: int = 200) -> Reply:
    return Reply(status, [json.dumps(body).encode()])


def as_events(*events: tuple[str, str, Any], cut: bool = False) -> Reply:
    """(event, id, data) each."""
    lines = [
        f"event: {name}\n" + (f"id: {id_}\n" if id_ else "") + f"data: {json.dumps(data)}\n\n"
        for name, id_, data in events
    ]
    return Reply(200, [line.encode() for line in lines], cut)


@dataclass
class Answering:
    answer: Callable[[Asked], Reply]
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        asked = Asked(scope["method"], scope["path"], headers, body, dict(parse_qsl(scope["query_string"].decode())))
        self.asked.append(asked)
        reply = self.answer(asked)
        length = sum(map(len, reply.pieces)) + (100 if reply.cut else 0)  # more is promised than comes
        await send(
            {"type": "http.response.start", "status": reply.status, "headers": [(b"content-length", b"%d" % length)]}
        )
        for piece in reply.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if not reply.cut:
            await send({"type": "http.response.body"})


@contextlib.asynccontextmanager
async def answering(answer: Callable[[Asked], Reply]) -> AsyncIterator[Answering]:
    app = Answering(answer)
    async with served(app, free_socket()) as url:
        app.url = url
        yield app
