"""`arriero audit …`: who did what, and whether that is still what was written."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from libs.cli.client_options import seconds
from libs.cli.failures import CommandFailed
from libs.cli.output import Json, is_json, show

if TYPE_CHECKING:
    from libs.cli.trail import Line, TrailReader
    from libs.common.audit.lines import Entry
    from libs.common.audit.verify import Report

HELP = """The audit trail: who did what to what, from where, with which result. It is only ever added to.

Tokens, clients, keys, refused credentials, work on models and nodes, jobs (counted by the minute); never a prompt, an answer
or a secret. Each process writes a chain of its own: every record holds the hash of the one before. Each minute auth signs how
far all chains have come. `verify` checks all of that and names what was altered, cut out or put in. docs/audit.md says more.

It needs a client with the scope audit:read; the operator of `arriero up` has it.

\b
Examples:
  arriero audit tail                                      the newest records
  arriero audit tail -f --action 'key.*'                  everything about API keys, as it happens
  arriero audit tail --actor ci --since 2h                what the client ci did in the last two hours
  arriero audit export --since 30d > audit.jsonl          keep a copy elsewhere
  arriero audit verify                                    is the trail as it was written?
  arriero audit verify audit.jsonl                        is this copy?
"""

POLL_S = 1.0
SAY_EVERY = 5_000  # records, between two words of progress
SHOWN = 20  # problems; --json has all

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None)

Since = Annotated[
    str, typer.Option(metavar="WHEN", help="Only from then on: 30m, 2h, 7d ago, or a time such as 2026-11-23T12:00Z.")
]
Until = Annotated[str, typer.Option(metavar="WHEN", help="Only what was stored before then.")]


@app.command()
def tail(
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes; Ctrl-C ends it.")] = False,
    count: Annotated[int, typer.Option("-n", min=0, max=1000, help="So many of the newest.")] = 20,
    action: Annotated[str, typer.Option(help="Only this, such as client.create; 'client.*' takes all of them.")] = "",
    actor: Annotated[str, typer.Option(help="Only what this client did.")] = "",
    since: Since = "",
    as_json: Json = False,
) -> None:
    """Show the newest records. A count such as ×7 says that so many equal ones came within a minute.

    With --json a line each: sequence, subject, stored_ms (by the server's clock) and the record as it stands.
    """
    query = {"tail": str(count), **({"action": action} if action else {}), **({"actor": actor} if actor else {})}
    if since:
        query["since"] = when(since)
    asyncio.run(_tail(query, follow=follow))


@app.command()
def export(
    file: Annotated[
        Path | None, typer.Argument(dir_okay=False, help="Where to; it must not exist yet. Without: stdout.")
    ] = None,
    since: Since = "",
    until: Until = "",
    as_json: Json = False,
) -> None:
    """Copy the trail: each record with its exact bytes and its sequence, for `arriero audit verify FILE` to check anywhere.

    Keep copies where whoever runs Arriero cannot change them: a copy proves that nothing up to its last checkpoint was changed
    later. The first line says what the file covers and holds auth's public keys, the last line that it is whole.
    """
    query = {name: when(value) for name, value in (("since", since), ("until", until)) if value}
    asyncio.run(_export(query, file))


@app.command()
def verify(
    file: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="An exported file. Without: the trail itself.")
    ] = None,
    keys: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Auth's public keys, as its /.well-known/jwks.json gives them, kept from a time you trust. Without: "
            "those of the running Arriero; for a file those that came with it.",
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Check every record: hashes, numbers, sequences, and the signed checkpoints. Ends with 1 and names what is not as it was.

    Not a problem, but told: chains without a last word, of processes that still run or were killed. What was written after the
    newest checkpoint (a minute at most) is held by its chains alone: a cut at their very end would not be seen.
    """
    report, remarks = asyncio.run(_verify(file, keys))
    _tell(report, remarks)


# --------------------------------------------------------------------------------------------------------------------


def when(text: str, now: datetime | None = None) -> str:
    """A time as the server takes it. Raises CommandFailed."""
    now = now or datetime.now(UTC)
    try:
        if (span := seconds(text)) is not None:
            return (now - timedelta(seconds=span)).isoformat()
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.astimezone()).isoformat()
    except (ValueError, OverflowError) as error:
        message = f"{text!r} is no time: say 30m, 2h, 7d, 2026-11-23, or 2026-11-23T12:00:00Z"
        raise CommandFailed(message, code="usage") from error


def _reader() -> "TrailReader":
    from libs.cli.trail import TrailReader
    from libs.cli.whereabouts import administrator

    return TrailReader(administrator())


async def _tail(query: dict[str, str], *, follow: bool) -> None:
    from libs.common.audit.lines import End, Trail

    reader, upto = _reader(), 0
    while True:
        async for read in reader.page(query):
            if isinstance(read, End):
                upto = read.upto
            elif not isinstance(read, Trail):
                _show(read)
        if not follow:
            return
        query = {name: value for name, value in query.items() if name in ("action", "actor")} | {"after": str(upto)}
        await asyncio.sleep(POLL_S)


def _show(entry: "Entry") -> None:
    from libs.common.audit.lines import line_of

    if is_json():
        sys.stdout.write(line_of(entry).decode())
        sys.stdout.flush()
        return
    print(sentence(entry), flush=True)


def sentence(entry: "Entry") -> str:
    """One record, for humans."""
    from libs.common.contracts.audit import decode_audit
    from libs.common.contracts.codec import Malformed

    at = datetime.fromtimestamp(entry.stored_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    try:
        record = decode_audit(entry.data)
    except Malformed:
        return f"{at}  (unreadable)  sequence {entry.sequence} of {entry.writer}"
    who = entry.writer if record.action.startswith(("service.", "trail.")) else record.actor or "-"
    parts = [f"{at}  {record.result:<7}  {record.action:<18}", who]
    if record.target:
        parts.append(f"→ {record.target}")
    if record.reason:
        parts.append(f"({record.reason})")
    if record.address:
        parts.append(f"from {record.address}")
    if record.credential:
        parts.append(f"with {record.credential}")
    if record.count > 1:
        parts.append(f"×{record.count}")
    if record.dropped:
        parts.append(f"[{record.dropped} records before this one were lost]")
    return " ".join(parts)


async def _export(query: dict[str, str], file: Path | None) -> None:
    from libs.common.audit.lines import End, Entry, line_of

    progress = _Progress("exported")
    try:
        out = file.open("xb") if file else sys.stdout.buffer
    except OSError as error:
        raise CommandFailed(f"cannot write {file}: {error.strerror}", code="usage") from error
    upto = 0
    try:
        async for read in _reader().read(query):
            out.write(line_of(read))
            if isinstance(read, Entry):
                progress.one()
            elif isinstance(read, End):
                upto = read.upto
            else:
                progress.total = read.last - read.after
        out.flush()
    finally:
        if file:
            out.close()
    progress.end()
    if file:
        text = f"{progress.count:,} records up to sequence {upto} in {file}. `arriero audit verify {file}` checks them."
        show({"file": str(file), "records": progress.count, "upto": upto}, text)


async def _verify(file: Path | None, keys: str) -> tuple["Report", list[str]]:
    from libs.cli.trail import read_file
    from libs.common.audit.lines import End, Entry, Trail
    from libs.common.audit.verify import Verifier, public_keys

    progress = _Progress("checked")
    remarks: list[str] = []
    verifier: Verifier | None = None
    upto, newest, kept = 0, 0, ""
    read: AsyncIterator[Line] = _steps(read_file(file)) if file else _reader().read({})
    async for step in read:
        if isinstance(step, Trail):
            given = _keys_in(keys) if keys else step.keys
            if file and not keys:
                remarks.append(_whose_keys(step.keys))
            if step.since_ms is not None or step.until_ms is not None:
                remarks.append("This copy begins and ends where it was told to; what is outside is not checked.")
            if step.expired:
                remarks.append(f"Everything up to sequence {step.expired} has expired.")
            verifier = Verifier(public_keys(given), step.after)
            newest, kept = step.last, step.kept
            progress.total = step.last - step.after
        elif isinstance(step, Entry) and verifier:
            verifier.add(step)
            progress.one()
        elif isinstance(step, End):
            upto = step.upto
    progress.end()
    if verifier is None:
        raise CommandFailed(f"{file} is empty: it is not a file of `arriero audit export`", code="usage")
    return verifier.finish(upto, kept if upto >= newest else ""), remarks


async def _steps(lines: "Iterator[Line]") -> "AsyncIterator[Line]":
    for step in lines:
        yield step


def _keys_in(path: str) -> list[dict[str, Any]]:
    import msgspec

    try:
        found: Any = msgspec.json.decode(Path(path).read_bytes())["keys"]
        return [key for key in found if isinstance(key, dict)]
    except OSError as error:
        raise CommandFailed(f"cannot read {path}: {error.strerror}", code="usage") from error
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise CommandFailed(
            f"{path} is no set of keys: get it from /.well-known/jwks.json of auth", code="usage"
        ) from error


def _whose_keys(keys: list[dict[str, Any]]) -> str:
    names = ", ".join(str(key.get("kid", "")) for key in keys) or "none"
    return f"Signatures are checked with the keys that came with the file ({names}): compare them, or give --keys."


def _tell(report: "Report", remarks: list[str]) -> None:
    import msgspec

    open_chains = [writer for writer in report.writers if not writer.ended and writer.writer != "auth.checkpoint"]
    lost = sum(writer.lost for writer in report.writers)
    remarks = list(remarks)
    if report.checkpoints:
        at = datetime.fromtimestamp(report.checkpoint_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
        remarks.append(
            f"{report.checkpoints:,} checkpoints, {report.checked:,} of them by keys at hand; the newest, of {at}, "
            f"covers everything up to sequence {report.checkpoint_upto}."
        )
    else:
        remarks.append("There is no checkpoint in it: a cut at the end of a chain would not be seen.")
    if open_chains:
        names = ", ".join(writer.writer for writer in open_chains[:5]) + (" …" if len(open_chains) > 5 else "")
        remarks.append(
            f"{len(open_chains)} of {len(report.writers) - bool(report.checkpoints)} chains have no goodbye record: "
            f"their processes still run, or ended without a word ({names})."
        )
    if lost:
        remarks.append(f"By their own word the processes lost {lost:,} records while NATS was away.")
    body = {"verified": not report.problems, **msgspec.to_builtins(report), "remarks": remarks}
    body["problems"] = [problem._asdict() for problem in report.problems]
    if report.problems:
        told = [told_problem(problem._asdict()) for problem in report.problems]
        more = [f"… and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
        raise CommandFailed(
            f"the trail is not as it was written: {told[0]}",
            code="trail_broken",
            more="\n".join([*told[1:SHOWN], *more, *remarks]),
            details=body,
        )
    text = f"All {report.records:,} records (sequences {report.first} to {report.last}) are as they were written."
    show(body, "\n".join([text, *remarks]))


def told_problem(problem: dict[str, Any]) -> str:
    where = f"sequence {problem['sequence']}" if problem["sequence"] else "sequence unknown"
    whose = f", record {problem['n']} of {problem['writer']}" if problem["writer"] else ""
    at = ""
    if problem["at_ms"]:
        at = f", stored {datetime.fromtimestamp(problem['at_ms'] / 1000).strftime('%Y-%m-%d %H:%M:%S')}"
    return f"{problem['kind']}: {where}{whose}{at}: {problem['text']}"


class _Progress:
    """Now and then a word on stderr, when a human is there."""

    def __init__(self, verb: str) -> None:
        self.count = 0
        self.total = 0
        self._verb = verb
        self._shown = sys.stderr.isatty() and not is_json()

    def one(self) -> None:
        self.count += 1
        if self._shown and self.count % SAY_EVERY == 0:
            print(f"\r{self._verb} {self.count:,} of {self.total:,}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._shown and self.count >= SAY_EVERY:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
