"""How commands speak. Without --json: tables and sentences on stdout. With --json: one JSON value on stdout, nothing else.

A failure is one sentence on stderr, and with --json also `{"error": {"code", "message"}}` on stdout.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer

from libs.cli.failures import CommandFailed


class _Choice:
    as_json = False


def _choose(value: bool) -> bool:
    _Choice.as_json = _Choice.as_json or value
    return value


Json = Annotated[bool, typer.Option("--json", callback=_choose, help="Print JSON for programs instead of text.")]


def is_json() -> bool:
    return _Choice.as_json


def show(value: Any, text: str) -> None:
    """`value` for programs, or `text` for humans."""
    line(value) if _Choice.as_json else print(text)


def line(value: Any) -> None:
    """One JSON value on a line of its own, at once."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def table(rows: Sequence[Sequence[object]], headings: Sequence[str]) -> str:
    """Plain columns, which also cut and grep can read, and in which no name steers the terminal."""
    if not rows:
        return "(none)"
    cells = [[_plain(str(cell)) if cell is not None else "-" for cell in row] for row in (headings, *rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _plain(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def fail(failure: CommandFailed) -> int:
    """Says it, and gives the exit code."""
    if _Choice.as_json:
        details = {"details": failure.details} if failure.details else {}
        line({"error": {"code": failure.code, "message": str(failure), **details}})
    print(f"arriero: {failure}", file=sys.stderr)
    if failure.more:
        print("\n".join(f"    {text}" for text in failure.more.splitlines()), file=sys.stderr)
    return 2 if failure.code == "usage" else 1
