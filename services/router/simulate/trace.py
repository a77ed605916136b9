"""Traces: the jobs of a run as JSON lines, oldest first when written, in any order when read.

    {"t": 0.25, "model": "llama3.1:8b", "prompt_tokens": 900, "output_tokens": 210,
     "client": "ann", "priority": "normal", "conversation": "c7"}

`t` is in seconds. `client`, `priority` and `conversation` may be left out; fields that are not named here are skipped.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from libs.common.contracts.requests import Priority
from services.router.simulate.failures import BadInput

DEFAULT_CLIENT = "default"
Tokens = Annotated[int, msgspec.Meta(ge=0, le=100_000_000)]


class TraceJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    t: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    model: Annotated[str, msgspec.Meta(min_length=1)]
    prompt_tokens: Tokens
    output_tokens: Tokens
    client: str | None = None
    priority: Priority | None = None
    conversation: str | int | None = None  # jobs of one conversation continue each other's prompt


def read_trace(path: Path) -> list[TraceJob]:
    """In order of `t`; those of the same moment in the order of the file. Raises BadInput."""
    decoder = msgspec.json.Decoder(TraceJob)
    jobs = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    jobs.append(decoder.decode(line))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise BadInput(f"{path}, line {number}: {_plain(error)}") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    if not jobs:
        raise BadInput(f"{path} has no jobs")
    jobs.sort(key=lambda job: job.t)
    return jobs


def write_trace(path: Path, jobs: Iterable[TraceJob]) -> None:
    """Raises BadInput."""
    encoder = msgspec.json.Encoder()
    try:
        with path.open("wb") as file:
            for job in jobs:
                file.write(encoder.encode(job) + b"\n")
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}") from error


def _plain(error: Exception) -> str:
    if isinstance(error, msgspec.ValidationError):
        text, _, where = str(error).partition(" - at `$.")
        return f"{where.rstrip('`')}: {text[0].lower()}{text[1:]}" if where else text[0].lower() + text[1:]
    return "this is no JSON object"
