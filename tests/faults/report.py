"""`docs/reliability.md`: what a long run did, saw and checked. Pure but for `METHOD`: records in, text out."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.faults.checker import Kind, Verdict
from tests.faults.figures import Row

METHOD = Path(__file__).parent / "method.md"  # what is checked, what is not, and what broken code looked like
_HEAD = """\
# Reliability, as it was measured

Written by `make faults`; its fixed parts stand in `tests/faults/method.md`. A seeded load of jobs, polls, streams, chats,
cancels and repeats runs while gateways, routers, workers, simulated nodes and NATS servers are killed, frozen and restarted,
and while gateways, routers and workers are cut off from NATS.
Clients write down what they see, and a checker that shares no code with the services reads it afterwards.
"""
_HEALING = """\
Time to heal, in seconds. Fleet: from the fault until a job that was submitted after it had succeeded. Part: until the struck
gateway answered again, or the struck node had finished a job that was submitted after the fault. Other faults overlap.
"""


class Ran(NamedTuple):
    date: str
    command: str
    commit: str
    seed: int
    servers: int
    load_s: float
    total_s: float


def section(ran: Ran, verdict: Verdict, rows: Sequence[Row]) -> str:
    """One run."""
    title = "One NATS server" if ran.servers == 1 else f"{ran.servers} NATS servers, streams with as many replicas"
    lines = [
        f"## {title}",
        "",
        f"{ran.date}, commit `{ran.commit}`, seed {ran.seed}: `{ran.command}`.",
        "Two gateways, two routers, three workers with a simulated node each; everything and the load on one machine.",
        f"{ran.load_s:.0f} s of load and faults; {ran.total_s:.0f} s with start, rest and audit.",
        "",
        *_violations(verdict),
        "",
        "| count | |",
        "|---|---:|",
        *(f"| {name} | {count:,} |" for name, count in sorted(verdict.counts.items()) if count),
        "",
        _HEALING,
        "| struck | how | faults | fleet p50 | fleet p99 | part p50 | part p99 |",
        "|---|---|---:|---:|---:|---:|---:|",
        *map(_row, rows),
        "",
    ]
    return "\n".join(lines)


def page(sections: Sequence[str]) -> str:
    return "\n".join([_HEAD, *sections, METHOD.read_text()])


def _violations(verdict: Verdict) -> list[str]:
    if not verdict.violations:
        return ["**No violation.**"]
    found = [f"**Violations: {len(verdict.violations)}.**", ""]
    for kind in Kind:
        of_kind = [violation for violation in verdict.violations if violation.kind is kind]
        if of_kind:
            first = of_kind[0]
            found.append(f"* {kind}: {len(of_kind)}, first at {first.t:.1f} s: `{first.subject}`: {first.text}")
    return found


def _row(row: Row) -> str:
    seconds = (row.fleet_p50, row.fleet_p99, row.part_p50, row.part_p99)
    shown = " | ".join("" if value is None else f"{value:.1f}" for value in seconds)
    return f"| {row.role} | {row.kind} | {row.count} | {shown} |"
