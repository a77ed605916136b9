"""Server-sent events (WHATWG HTML §9.2), read from chunks of any size."""

import codecs
from collections.abc import AsyncIterator

import msgspec


class ServerEvent(msgspec.Struct, frozen=True):
    """`id` is the last id seen so far, as `Last-Event-ID` wants it back."""

    event: str
    data: str
    id: str = ""


class SseReader:
    """Fed with bytes, gives whole events; comments and unknown fields are skipped, an event without data does not count."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._rest = ""
        self._ends_in_return = False
        self._event = ""
        self._data: list[str] = []
        self.last_id = ""

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        text = self._decoder.decode(chunk)
        if self._ends_in_return and text:  # \r\n torn in two is one line end
            self._ends_in_return = False
            text = text.removeprefix("\n")
        self._ends_in_return = self._ends_in_return or text.endswith("\r")
        *lines, self._rest = (self._rest + text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return [event for line in lines if (event := self._line(line))]

    def _line(self, line: str) -> ServerEvent | None:
        if not line:
            event = ServerEvent(self._event or "message", "\n".join(self._data), self.last_id) if self._data else None
            self._event, self._data = "", []
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self.last_id = value
        return None


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[ServerEvent]:
    reader = SseReader()
    async for chunk in chunks:
        for event in reader.feed(chunk):
            yield event
