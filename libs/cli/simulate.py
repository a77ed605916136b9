"""`arriero simulate …`: the simulator of the router's decisions, as a process in our place; and own jobs as its trace."""

import asyncio
import os
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from libs.cli.failures import CommandFailed

PAGE = 1000
AT_ONCE = 8  # questions to the gateway


def simulate(
    context: typer.Context,
    export: Annotated[str, typer.Option(metavar="FILE", help="Write own finished jobs as a trace.")] = "",
) -> None:
    """Play jobs against a described fleet in virtual time, and compare ways to choose nodes. Nothing has to run.

    All options but --export are the simulator's own; `arriero simulate --help` shows them.
    """
    if export:
        if context.args:
            raise CommandFailed(f"--export stands alone: what is {context.args[0]!r} for?", code="usage")
        lines = trace(asyncio.run(_own_jobs()))
        _write(export, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        print(f"{len(lines)} jobs", file=sys.stderr)
        return
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    os.execve(sys.executable, [sys.executable, "-m", "services.router.simulate", *context.args], environment)


def trace(jobs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a trace, from jobs as GET /jobs/{id} shows them; those without usage are left out. Oldest first."""
    known = [job for job in jobs if job.get("usage")]
    times = [datetime.fromisoformat(job["created_at"]).timestamp() for job in known]
    first = min(times, default=0.0)
    lines = [
        {
            "t": round(time - first, 3),
            "model": job["model"],
            "prompt_tokens": job["usage"]["prompt_tokens"],
            "output_tokens": job["usage"]["completion_tokens"],
            "priority": job["priority"],
        }
        for time, job in zip(times, known, strict=True)
    ]
    return sorted(lines, key=lambda line: line["t"])


async def _own_jobs() -> list[dict[str, Any]]:
    """Those that succeeded, each with its usage: a listing does not have it."""
    from libs.cli.http import connect
    from libs.cli.whereabouts import gateway

    where = gateway()
    ids: dict[str, None] = {}  # a job that moves on between two pages comes twice
    asked = {"limit": str(PAGE), "state": "succeeded"}
    async with connect(where.url, where.api_key) as http:
        while True:
            page = await http.call("GET", "/jobs", params=asked)
            ids |= {row["id"]: None for row in page["jobs"]}
            if not page["cursor"]:
                break
            asked["cursor"] = page["cursor"]
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(job_id: str) -> dict[str, Any]:
            async with limit:
                try:
                    job: dict[str, Any] = await http.call("GET", f"/jobs/{job_id}")
                except CommandFailed as failure:
                    if failure.code != "job_not_found":
                        raise
                    return {}  # erased or expired since
                return job

        return await asyncio.gather(*(one(job_id) for job_id in ids))


def _write(file: str, content: bytes) -> None:
    try:
        if file == "-":
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        else:
            Path(file).write_bytes(content)
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror}", code="usage") from error
