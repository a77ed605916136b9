"""`arriero job …`: work that outlives whoever asked for it."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
import typer

from libs.cli.explaining import explained, quoted
from libs.cli.failures import CommandFailed
from libs.cli.output import Json, line, show, table
from libs.cli.sse import ServerEvent
from libs.cli.up.backoff import next_delay
from libs.common.contracts.requests import Kind, Priority
from libs.common.states import FINAL

app = typer.Typer(help="Jobs: submit, watch, cancel, retry.", no_args_is_help=True, rich_markup_mode=None)

AGAIN = frozenset({"away", "draining", "unavailable"})  # a gateway's restart looks like this
GIVE_UP_AFTER = 8  # times in a row that the stream could not be opened again: about a minute

Id = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]


@app.command()
def submit(
    model: Annotated[str, typer.Argument(help="Which model.", show_default=False)] = "",
    prompt: Annotated[str, typer.Argument(help="What to answer, or the text to embed; - reads it from a pipe.")] = "",
    kind: Annotated[Kind, typer.Option(help="What to do with it.")] = Kind.CHAT,
    priority: Annotated[Priority | None, typer.Option(help="Who goes first.")] = None,
    deadline: Annotated[float | None, typer.Option(metavar="S", help="Seconds from now to the end.")] = None,
    result_ttl: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds that the result is kept after that.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="The whole request as JSON, as POST /jobs takes it; - is a pipe.")
    ] = None,
    idempotency_key: Annotated[str, typer.Option(help="The same key and request give the same job.")] = "",
    webhook: Annotated[str, typer.Option(metavar="ID", help="Tell this webhook when it ends.")] = "",
    watch_it: Annotated[bool, typer.Option("--watch", help="Stay and print the answer as it comes.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Submit nothing; tell where it would go, and when it would end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Submit a job and print its id.

    \b
    Examples:
      arriero job submit llama3.2:3b "Write a haiku about a mountain pass." --watch
      arriero job submit nomic-embed-text "some text" --kind embed
      ID=$(arriero job submit llama3.2:3b "Tell a long story.") && arriero job watch $ID
    """
    if dry_run and watch_it:
        raise CommandFailed("a dry run submits nothing, so there is nothing to watch", code="usage")
    if file:
        body = _file(file)
    elif model and prompt:
        body = request(model, sys.stdin.read() if prompt == "-" else prompt, kind)
    else:
        raise CommandFailed("give a model and a prompt, or --file", code="usage")
    more = {"priority": priority, "deadline_s": deadline, "result_ttl_s": result_ttl, "webhook": webhook or None}
    body |= {name: value for name, value in more.items() if value is not None}
    if not (idempotency_key.isascii() and idempotency_key.isprintable()):
        raise CommandFailed("an --idempotency-key is of printable ASCII characters", code="usage")
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    if dry_run:
        answer = asyncio.run(call("POST", "/jobs", body, headers=headers, params={"dry_run": "1"}))
        show(answer, quoted(answer))
        return
    job = asyncio.run(call("POST", "/jobs", body, headers=headers))
    if watch_it:
        if not as_json:
            print(job["id"], file=sys.stderr)
        watch(job["id"], as_json=as_json)
    else:
        show(job, job["id"])


@app.command()
def get(
    job_id: Id,
    wait: Annotated[float, typer.Option(min=0, help="Wait up to so many seconds for the end.")] = 0,
    as_json: Json = False,
) -> None:
    """A job's state, and its result when it has one."""
    job = asyncio.run(call("GET", _path(job_id), params={"wait": f"{wait:g}"} if wait else {}, timeout=wait + 30))
    show(job, describe(job))


@app.command()
def explain(job_id: Id, as_json: Json = False) -> None:
    """Why a job is where it is: the nodes that were looked at, with the seconds that each would have taken.

    A job that still waits tells its place, and what it waits for.
    """
    job = asyncio.run(call("GET", _path(job_id), params={"explain": "1"}))
    show(job, explained(job))


@app.command()
def watch(
    job_id: Id,
    after: Annotated[str, typer.Option(metavar="POSITION", help="Go on behind this position (an event's id).")] = "",
    as_json: Json = False,
) -> None:
    """The answer as it comes, from its beginning. Ends with 0 when the job succeeded.

    With --json one line per event: {"event", "id", "data"}.
    """
    ending = asyncio.run(watch_job(job_id, after, _print_json if as_json else _print_text))
    if ending != "succeeded":
        raise typer.Exit(1)


@app.command()
def cancel(job_id: Id, as_json: Json = False) -> None:
    """Cancel a job; erase one that has ended."""
    job = asyncio.run(call("DELETE", _path(job_id)))
    became = "erased" if job.get("erased") else "cancelling" if job.get("cancelling") else job["state"]
    show(job, f"{job_id} {became}")


@app.command()
def retry(job_id: Id, as_json: Json = False) -> None:
    """Try a job again that failed, expired or was cancelled: a new job with the same request. Prints its id.

    \b
    Example:
      arriero job list --state failed
      arriero job watch $(arriero job retry ID)
    """
    job = asyncio.run(call("POST", _path(job_id) + "/retry"))
    show(job, job["id"])


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
    cursor: Annotated[str, typer.Option(help="Where the last page ended.")] = "",
    state: Annotated[str, typer.Option(help="Only those in this state.")] = "",
    as_json: Json = False,
) -> None:
    """The jobs of this client."""
    found = asyncio.run(_pages(limit, cursor, state))
    rows = [
        (job.get("id"), job.get("state"), job.get("kind"), job.get("model"), job.get("node"), job.get("created_at"))
        for job in found["jobs"]
    ]
    text = table(rows, ("JOB", "STATE", "KIND", "MODEL", "NODE", "CREATED"))
    more = found["cursor"]
    again = f"arriero job list{f' --state {state}' if state else ''} --cursor {more}"
    show(found, f"{text}\n\nMore: {again}" if more else text)


async def _pages(limit: int, cursor: str, state: str) -> dict[str, Any]:
    """As many rows as were asked for, if there are so many: a page holds few of a rare state, or none, and yet goes on."""
    rows: list[dict[str, Any]] = []
    while True:
        asked = {"limit": str(limit - len(rows))}
        asked |= {name: text for name, text in (("cursor", cursor), ("state", state)) if text}
        page = await call("GET", "/jobs", params=asked)
        rows += page["jobs"]
        cursor = page["cursor"]
        if not cursor or len(rows) >= limit:
            return {"jobs": rows, "cursor": cursor}


def request(model: str, prompt: str, kind: Kind) -> dict[str, Any]:
    """The body of POST /jobs for one text."""
    match kind:
        case Kind.CHAT:
            said: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        case Kind.GENERATE:
            said = {"prompt": prompt}
        case Kind.EMBED:
            said = {"input": prompt}
    return {"model": model, "kind": kind, **said}


def describe(job: dict[str, Any]) -> str:
    """For humans: the facts that are there, then the answer."""
    facts = "id state model kind node attempts position eta_s created_at started_at finished_at"
    lines = [f"{name:<12} {job[name]}" for name in facts.split() if job.get(name) not in (None, [], "")]
    if error := job.get("error"):
        lines.append(f"{'error':<12} {error['message']} ({error['code']})")
    result = job.get("result") or {}
    text = (result.get("message") or {}).get("content") or result.get("response")
    if text:
        lines += ["", text]
    elif embeddings := result.get("embeddings"):
        lines.append(f"{'result':<12} {len(embeddings)} × {len(embeddings[0])} numbers (--json prints them)")
    return "\n".join(lines)


def _file(path: Path) -> dict[str, Any]:
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return msgspec.json.decode(content, type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise CommandFailed(f"{path} is no readable JSON object: {error}", code="usage") from error


def _path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


async def call(method: str, path: str, body: Any = None, **more: Any) -> Any:
    """What the gateway answers. Raises CommandFailed."""
    from libs.cli.http import connect
    from libs.cli.whereabouts import gateway

    where = gateway()
    async with connect(where.url, where.api_key) as http:
        return await http.call(method, path, body, **more)


async def watch_job(job_id: str, after: str, tell: Callable[[ServerEvent], None]) -> str:
    """Tells every event; the final one's name. A broken stream is taken up again where it broke, at any gateway."""
    failures, delay = 0, None
    while True:
        try:
            async for event in _events(job_id, after):
                failures, delay, after = 0, None, event.id or after
                tell(event)
                if event.event in FINAL:
                    return event.event
        except CommandFailed as failure:
            if failure.code not in AGAIN or failures >= GIVE_UP_AFTER:
                raise
        failures += 1
        if failures > GIVE_UP_AFTER:
            raise CommandFailed(f"the stream of {job_id} ends again and again without an end", code="interrupted")
        delay = next_delay(delay, ran_s=0)
        await asyncio.sleep(delay)


async def _events(job_id: str, after: str) -> AsyncIterator[ServerEvent]:
    from libs.cli.http import connect
    from libs.cli.whereabouts import gateway

    where = gateway()
    headers = {"Last-Event-ID": after} if after else {}
    async with connect(where.url, where.api_key) as http:
        async for event in http.events("GET", _path(job_id) + "/stream", headers=headers):
            yield event


def _print_json(event: ServerEvent) -> None:
    try:
        data = msgspec.json.decode(event.data)
    except msgspec.MsgspecError:
        data = event.data
    line({"event": event.event, "id": event.id or None, "data": data})


def _print_text(event: ServerEvent) -> None:
    """The answer on stdout, what happens around it on stderr."""
    try:
        data = msgspec.json.decode(event.data)
    except msgspec.MsgspecError:
        data = {}
    if not isinstance(data, dict):
        data = {}
    match event.event:
        case "token":
            sys.stdout.write(data.get("text") or data.get("thinking") or "")
            sys.stdout.flush()
        case "succeeded":
            print()
        case "reset":
            print("\n(started again; what came before does not count)", file=sys.stderr)
        case name if name in FINAL:
            why = (data.get("fault") or {}).get("message")
            print(f"\n{name}" + (f": {why}" if why else ""), file=sys.stderr)
        case name:
            print(f"({name}{_around(data)})", file=sys.stderr)


def _around(data: dict[str, Any]) -> str:
    """What an event before the answer tells: where, the place in the queue, how far a load is."""
    told = f" on {data['node']}" if data.get("node") else ""
    if data.get("position") is not None:
        told += f", position {data['position']}"
    if data.get("eta_s") is not None:
        told += f", starts in about {data['eta_s']:.0f} s"
    if data.get("elapsed_s") is not None:
        told += f", {data['elapsed_s']:.0f} s" + (
            f" of about {data['expected_s']:.0f}" if data.get("expected_s") else ""
        )
    return told
