"""The checker's own reading of server-sent events and positions, from the bytes a client got. Shares no code with services."""

import json
from typing import Any, NamedTuple


class Frame(NamedTuple):
    """One whole event as it came. Comments and what the connection's end cut in two are none."""

    event: str
    data: str
    id: str


class Place(NamedTuple):
    epoch: int
    offset: int


class Line(NamedTuple):
    """One event of a job's log, as a `/jobs` stream shows it: its bytes lie from `start` to `end`."""

    epoch: int
    start: int
    end: int
    event: str
    data: str

    @property
    def last(self) -> bool:
        return self.event != "token"


def frames(raw: bytes) -> list[Frame]:
    found = []
    for block in raw.split(b"\n\n")[:-1]:
        event, data, id_ = "message", [], ""
        for line in block.decode("utf-8").split("\n"):
            name, colon, value = line.partition(":")
            value = value[1:] if value.startswith(" ") else value
            if not colon or not name:
                continue
            if name == "event":
                event = value
            elif name == "data":
                data.append(value)
            elif name == "id":
                id_ = value
        if data:
            found.append(Frame(event, "\n".join(data), id_))
    return found


def place(text: str) -> Place:
    """`<epoch>.<offset>`; a chat adds `-<n>` when one event of the log became several chunks and n of them are behind."""
    epoch, _, offset = text.partition("-")[0].partition(".")
    return Place(int(epoch), int(offset))


def log_line(frame: Frame) -> Line:
    """`{"end":…}` is shown without its wrapping, so it took nine bytes more in the log: wrapping and line end."""
    epoch, end = place(frame.id)
    size = len(frame.data.encode()) + (1 if frame.event == "token" else 9)
    return Line(epoch, end - size, end, frame.event, frame.data)


def text_of(data: str) -> str:
    return str(json.loads(data).get("text") or "")


def chat_delta(data: str) -> tuple[str, str | None]:
    """(text, error code) of one chunk in OpenAI's dialect."""
    chunk: dict[str, Any] = json.loads(data)
    if error := chunk.get("error"):
        return "", str(error.get("code"))
    choices = chunk.get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or ""), None


def answer_text(view: dict[str, Any]) -> str | None:
    """The whole text in a job's view; None if there is no result, or one that is no text."""
    result = view.get("result")
    if not result:
        return None
    if "message" in result:
        return str(result["message"].get("content", ""))
    return result.get("response")
