"""What `arriero up` says while it works: sentences for a human, or one JSON object a line for a program (`--json`)."""

import contextlib
import sys
from typing import Any, Protocol

import msgspec
from rich.console import Console
from rich.text import Text


class Narrator(Protocol):
    def say(self, event: str, sentence: str, *, style: str = "", **facts: Any) -> None:
        """`event` and `facts` are for programs, `sentence` is for humans."""

    def warn(self, event: str, sentence: str, *, lines: list[str] | None = None, **facts: Any) -> None:
        """Something went wrong. `lines`: the end of a log."""

    def result(self, text: str, **facts: Any) -> None:
        """What the user came for: shown even when quiet, and never wrapped, so that it can be pasted."""

    def piece(self, text: str, *, thinking: bool = False) -> None:
        """A piece of an answer, as it comes."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process."""


class Terminal:
    """Colours on a terminal, plain lines elsewhere. Quiet: results and warnings only.

    A terminal that was closed, or a pipe that nobody reads any more, is no reason to stop.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = _Console(highlight=False, soft_wrap=True)
        self._errors = _Console(highlight=False, soft_wrap=True, stderr=True)
        self._quiet = quiet
        self._within_line = False

    def say(self, event: str, sentence: str, *, style: str = "", **facts: Any) -> None:
        if not self._quiet:
            with contextlib.suppress(OSError):
                self._end_line()
                self._console.print(Text(sentence, style=style))

    def warn(self, event: str, sentence: str, *, lines: list[str] | None = None, **facts: Any) -> None:
        with contextlib.suppress(OSError):
            self._end_line()
            self._errors.print(Text(sentence, style="yellow"))
            for line in lines or []:
                self._errors.print(Text(f"    {line}", style="dim"))

    def result(self, text: str, **facts: Any) -> None:
        with contextlib.suppress(OSError):
            self._end_line()
            self._console.print(Text(text))

    def piece(self, text: str, *, thinking: bool = False) -> None:
        self._within_line = not text.endswith("\n")
        with contextlib.suppress(OSError):
            self._console.print(Text(text, style="dim italic" if thinking else ""), end="")
            self._console.file.flush()

    def _end_line(self) -> None:
        if self._within_line:
            self._console.print()
            self._within_line = False


class JsonLines:
    def say(self, event: str, sentence: str, *, style: str = "", **facts: Any) -> None:
        self._write({"event": event, "message": sentence, **facts})

    def warn(self, event: str, sentence: str, *, lines: list[str] | None = None, **facts: Any) -> None:
        self._write({"event": event, "level": "warning", "message": sentence, "log": lines or [], **facts})

    def result(self, text: str, **facts: Any) -> None:
        self._write({"event": "ready", **facts})

    def piece(self, text: str, *, thinking: bool = False) -> None:
        self._write({"event": "answer.piece", "thinking" if thinking else "text": text})

    @staticmethod
    def _write(fields: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            sys.stdout.write(msgspec.json.encode(fields).decode() + "\n")
            sys.stdout.flush()
