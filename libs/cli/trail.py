"""The audit trail as auth gives it out, page after page; and as a file."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from libs.cli.failures import CommandFailed
from libs.cli.whereabouts import Administrator
from libs.common.audit.lines import End, Entry, Trail, read_line
from libs.common.contracts.codec import Malformed

PAGE = 5_000
FRESH_S = 120.0  # an access token is good for five minutes
TRIES = 5  # for a page that breaks off, from where it broke off
PAUSE_S = 1.0

Line = Trail | Entry | End


class TrailReader:
    def __init__(self, who: Administrator) -> None:
        self._who = who
        self._token = ""
        self._token_at = 0.0

    async def read(self, query: dict[str, str]) -> AsyncIterator[Line]:
        """One `Trail`, the entries up to what was the newest when it began, one `End`. Raises CommandFailed."""
        asked = {"limit": str(PAGE), **query}
        trail: Trail | None = None
        failures = 0
        while True:
            end: End | None = None
            try:
                async for line in self.page(asked):
                    if isinstance(line, Trail):
                        if trail is None:
                            trail = line
                            yield line
                    elif isinstance(line, End):
                        end = line
                    elif trail is None or line.sequence <= trail.last:
                        yield line
                        asked = _behind(asked, line.sequence)
                    failures = 0
            except CommandFailed as error:
                if error.code != "away" or failures >= TRIES:
                    raise
            if end is None:
                failures += 1
                if failures > TRIES:
                    raise CommandFailed("the audit trail broke off, several times; try again", code="away")
                await asyncio.sleep(PAUSE_S)
                continue
            if not end.more or trail is None or end.upto >= trail.last:
                yield End(upto=min(end.upto, trail.last) if trail else end.upto)
                return
            asked = _behind(asked, end.upto)

    async def page(self, query: dict[str, str]) -> AsyncIterator[Line]:
        """Raises CommandFailed."""
        from libs.cli.admin import AUDIT, access_token
        from libs.cli.http import connect

        if time.monotonic() - self._token_at > FRESH_S:
            self._token = await access_token(self._who, AUDIT)
            self._token_at = time.monotonic()
        async with connect(self._who.auth, self._token) as http:
            async for line in http.raw_lines("GET", "/audit", query):
                try:
                    yield read_line(line)
                except Malformed as error:
                    raise CommandFailed(f"{self._who.auth} answers, but not as Arriero does", code="no_json") from error


def _behind(query: dict[str, str], sequence: int) -> dict[str, str]:
    return {**query, "after": str(sequence)}


def read_file(path: Path) -> Iterator[Line]:
    """Of an exported file. Raises CommandFailed: not one, or cut off."""
    line: Line | None = None
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file, path), 1):
                if isinstance(line, Trail) != (number == 1):
                    raise CommandFailed(f"{path}:{number}: this is not a file of `arriero audit export`", code="usage")
                yield line
    except OSError as error:
        raise CommandFailed(f"cannot read {path}: {error.strerror}", code="usage") from error
    if not isinstance(line, End):
        raise CommandFailed(f'{path} is cut off: its last line, {{"end": …}}, is missing', code="cut_off")


def _lines(file: BinaryIO, path: Path) -> Iterator[Line]:
    for number, text in enumerate(file, 1):
        try:
            yield read_line(text.rstrip(b"\n"))
        except Malformed as error:
            message = f"{path}:{number}: this is not a line of `arriero audit export`, or it was altered"
            raise CommandFailed(message, code="unreadable") from error
