"""Every NATS subject. Tokens are checked when a subject is built, so that no client text can add a level or a wildcard.

| subject                                    | carrier      | from → to                     |
|--------------------------------------------|--------------|-------------------------------|
| `jobs.<client>.<job>.new|active|done`      | stream JOBS  | gateway · router · worker     |
| `cancels.<client>.<job>`                   | stream JOBS  | gateway → router              |
| `parts.<client>.<job>.<op_id>.<n>`         | stream JOBS  | whoever writes the record     |
| `out.<node>.<client>.<job>.<epoch>.c`      | core         | worker → gateways: live chunk |
| `out.<node>.<client>.<job>.<epoch>.s`      | stream OUT   | worker: acked segment         |
| `evt.<client>.<job>`                       | core         | winner of a CAS: a hint       |
| `prefix.<client>.<job>`                    | core request | router → watching gateways    |
| `ctl.<node>.<boot>.run|cancel|read|ping|model` | core request | router, gateway → worker |
| `ctl.router.free|place|erase|quote`        | core         | worker, gateway → router      |
| `api.<client>.submit|get|read|leave|cancel|list` | core request | internal service → gateways   |
| `audit.<service>.<writer>`                 | stream AUDIT | auth, gateway                 |
| `hooks.wait.<client>.<job>`                | stream HOOKS | gateway → gateways            |
| `hooks.send.<client>.<job>.<submitted>`    | stream HOOKS | gateway → gateways            |
| `$KV.<bucket>.<key>`                       | buckets      | see `streams`                 |
"""

import re
from typing import Literal, NamedTuple

TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")

Record = Literal["new", "active", "done"]
WorkerVerb = Literal["run", "cancel", "read", "ping", "model"]
RouterVerb = Literal["free", "place", "erase", "quote"]
ApiVerb = Literal["submit", "get", "read", "leave", "cancel", "list"]


class BadToken(ValueError):
    """A name that cannot be part of a subject; the text says which characters can."""


def token(value: str, what: str = "name") -> str:
    """`value` itself, when it is one plain subject token; else BadToken."""
    if not TOKEN.fullmatch(value):
        raise BadToken(f"a {what} has 1 to 64 of the characters A-Z a-z 0-9 _ - (got {value[:80]!r})")
    return value


class JobKey(NamedTuple):
    """The owner is part of a job's key: somebody else's job is not found, by construction."""

    client: str
    job: str


class OutKey(NamedTuple):
    node: str
    client: str
    job: str
    epoch: int


def record(key: JobKey, name: Record) -> str:
    return f"jobs.{token(key.client)}.{token(key.job)}.{name}"


def folder(key: JobKey) -> str:
    """The filter of every compare-and-set, always in this form: a cluster leader serializes by the filter string."""
    return f"jobs.{token(key.client)}.{token(key.job)}.*"


def parse_record(subject: str) -> tuple[JobKey, str]:
    """`jobs.c.j.new` → ((c, j), "new"), and `cancels.c.j` → ((c, j), "cancel"). Raises ValueError on anything else."""
    match subject.split("."):
        case ["jobs", client, job, name]:
            return JobKey(client, job), name
        case ["cancels", client, job]:
            return JobKey(client, job), "cancel"
    raise ValueError(f"not a job record: {subject}")


def client_records(client: str) -> str:
    return f"jobs.{token(client)}.>"


NEW = "jobs.*.*.new"
ACTIVE = "jobs.*.*.active"
DONE = "jobs.*.*.done"
CANCELS = "cancels.*.*"


def cancel_mark(key: JobKey) -> str:
    return f"cancels.{token(key.client)}.{token(key.job)}"


def part(key: JobKey, op_id: str, n: int) -> str:
    return f"parts.{token(key.client)}.{token(key.job)}.{token(op_id)}.{n}"


def parts_of_job(key: JobKey) -> str:
    return f"parts.{token(key.client)}.{token(key.job)}.>"


def chunk(key: OutKey) -> str:
    return f"out.{token(key.node)}.{token(key.client)}.{token(key.job)}.{key.epoch}.c"


def segment(key: OutKey) -> str:
    return f"out.{token(key.node)}.{token(key.client)}.{token(key.job)}.{key.epoch}.s"


def chunks_of_job(key: JobKey) -> str:
    return f"out.*.{token(key.client)}.{token(key.job)}.*.c"


def segments_of_epoch(key: JobKey, epoch: int) -> str:
    return f"out.*.{token(key.client)}.{token(key.job)}.{epoch}.s"


def segments_of_job(key: JobKey) -> str:
    return f"out.*.{token(key.client)}.{token(key.job)}.*.s"


def parse_out(subject: str) -> OutKey:
    """Raises ValueError on anything that is no chunk or segment."""
    match subject.split("."):
        case ["out", node, client, job, epoch, "c" | "s"]:
            return OutKey(node, client, job, int(epoch))
    raise ValueError(f"not an output subject: {subject}")


def hint(key: JobKey) -> str:
    return f"evt.{token(key.client)}.{token(key.job)}"


def prefix(key: JobKey) -> str:
    return f"prefix.{token(key.client)}.{token(key.job)}"


def worker(node: str, boot: str, verb: WorkerVerb) -> str:
    return f"ctl.{token(node)}.{token(boot)}.{verb}"


def router(verb: RouterVerb) -> str:
    return f"ctl.router.{verb}"


def api(client: str, verb: ApiVerb) -> str:
    return f"api.{token(client)}.{verb}"


def audit(service: str, writer: str) -> str:
    return f"audit.{token(service)}.{token(writer)}"


HOOKS_WAITING = "hooks.wait.*.*"
HOOKS_SENDING = "hooks.send.*.*.*"


def hook_wait(key: JobKey) -> str:
    return f"hooks.wait.{token(key.client)}.{token(key.job)}"


def hook_send(key: JobKey, submitted: int) -> str:
    """`submitted`: the sequence of the job's `new`; a keyed id may live again."""
    return f"hooks.send.{token(key.client)}.{token(key.job)}.{submitted}"


def hooks_of_client(client: str) -> tuple[str, str]:
    """Announcements and events."""
    return f"hooks.wait.{token(client)}.*", f"hooks.send.{token(client)}.*.*"


def parse_hook(subject: str) -> JobKey:
    """Raises ValueError on anything else."""
    match subject.split("."):
        case ["hooks", "wait", client, job] | ["hooks", "send", client, job, _]:
            return JobKey(client, job)
    raise ValueError(f"not a subject of webhooks: {subject}")


def hints_of_client(client: str) -> str:
    return f"evt.{token(client)}.*"


def parse_hint(subject: str) -> JobKey:
    """Raises ValueError on anything else."""
    match subject.split("."):
        case ["evt", client, job]:
            return JobKey(client, job)
    raise ValueError(f"not a hint: {subject}")


def parse_api(subject: str) -> tuple[str, str]:
    """`api.<client>.<verb>` → (client, verb). Raises ValueError on anything else."""
    match subject.split("."):
        case ["api", client, verb]:
            return client, verb
    raise ValueError(f"not an api subject: {subject}")
