"""The golden recordings of a real Ollama: loading, and the one HTTP reading both sides of a comparison go through."""

import json
from pathlib import Path
from typing import Any

import msgspec

GOLDEN = Path(__file__).parent.parent / "golden" / "ollama"


class Reply(msgspec.Struct, frozen=True):
    """A raw HTTP response, taken apart without forgiving anything."""

    status_line: str
    headers: dict[str, str]
    chunks: tuple[bytes, ...]  # HTTP chunks, or the one body that had a length
    is_chunked: bool
    is_complete: bool  # the last chunk, or all of the announced length, has arrived

    @property
    def status(self) -> int:
        return int(self.status_line.split()[1])

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def lines(self) -> list[Any]:
        """The JSON of an NDJSON body."""
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Recording(msgspec.Struct, frozen=True):
    name: str
    note: str
    request: bytes
    response: bytes
    end: str

    @property
    def reply(self) -> Reply:
        return read_reply(self.response, is_head=self.request.startswith(b"HEAD "))

    @property
    def body(self) -> Any:
        """The request's JSON, or None when it is none."""
        try:
            return json.loads(self.request.partition(b"\r\n\r\n")[2])
        except ValueError:
            return None


def names() -> list[str]:
    return sorted(path.stem for path in GOLDEN.glob("*.jsonl"))


def load(name: str) -> Recording:
    entries = [json.loads(line) for line in (GOLDEN / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    meta, request, *events = entries
    response = b"".join(_bytes(event) for event in events if event.get("dir") == "<")
    return Recording(name, meta["meta"]["note"], _bytes(request), response, events[-1]["end"])


def read_reply(raw: bytes, *, is_head: bool = False) -> Reply:
    head, separator, rest = raw.partition(b"\r\n\r\n")
    assert separator, f"no end of headers in {raw!r}"
    status_line, *header_lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in header_lines:
        name, _, value = line.partition(": ")
        assert name.lower() not in headers, f"{name} twice"
        headers[name.lower()] = value
    if headers.get("transfer-encoding") == "chunked":
        chunks, is_complete = _read_chunks(rest)
        return Reply(status_line, headers, chunks, is_chunked=True, is_complete=is_complete)
    expected = 0 if is_head else int(headers.get("content-length", -1))
    chunks = (rest,) if rest else ()
    return Reply(status_line, headers, chunks, is_chunked=False, is_complete=len(rest) == expected)


def _read_chunks(rest: bytes) -> tuple[tuple[bytes, ...], bool]:
    chunks: list[bytes] = []
    while rest:
        size_text, _, rest = rest.partition(b"\r\n")
        size = int(size_text, 16)
        if size == 0:
            assert rest == b"\r\n", f"bytes after the last chunk: {rest!r}"
            return tuple(chunks), True
        chunks.append(rest[:size])
        rest = rest[size + 2 :]
    return tuple(chunks), False


def _bytes(entry: dict[str, str]) -> bytes:
    return entry["bytes"].encode() if "bytes" in entry else entry["latin1"].encode("latin-1")
