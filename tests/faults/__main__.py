"""`make faults`: a long seeded fault run, and its report in docs/reliability.md."""

import argparse
import asyncio
import logging
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import structlog

from tests.faults.checker import check
from tests.faults.figures import heals, table
from tests.faults.processes import ROOT
from tests.faults.records import Book
from tests.faults.report import Ran, page, section
from tests.faults.run import Wanted, fault_run

REPORT = ROOT / "docs" / "reliability.md"
KEEP = "<!-- run: {} -->\n"  # marks each run's section, so that a run on the other kind of fleet keeps it


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults ARGS=…", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=7.0, help="of load")
    parser.add_argument("--cluster", action="store_true", help="three NATS servers instead of one")
    parser.add_argument("--only", default="", help="strike only these roles: gateway,router,worker,sim,nats")
    parser.add_argument("--report", type=Path, default=REPORT, help="where to write; the other kind's run stays in it")
    given = parser.parse_args()
    wanted = Wanted(
        seed=given.seed,
        jobs=given.jobs,
        faults=given.faults,
        seconds=given.minutes * 60,
        servers=3 if given.cluster else 1,
        only=tuple(filter(None, given.only.split(","))),
    )
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # of our own connection
    folder = Path(tempfile.mkdtemp(prefix="arriero-faults-"))
    print(f"records and logs are in {folder} until the run has ended without a violation")
    book = Book(folder / "records.jsonl")
    try:
        asyncio.run(fault_run(wanted, folder, book, lambda text: print(text, flush=True)))
    finally:
        total_s = book.now
        book.close()
    verdict = check(book.records, replicated=given.cluster)
    for name, count in sorted(verdict.counts.items()):
        print(f"  {name}: {count}")
    for violation in verdict.violations[:40]:
        print(f"VIOLATION {violation.kind}: {violation.subject}: {violation.text} (t={violation.t:.1f})")
    print(f"{len(verdict.violations)} violations {dict(Counter(str(v.kind) for v in verdict.violations))}")
    ran = Ran(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=_command(given),
        commit=_commit(),
        seed=given.seed,
        servers=wanted.servers,
        load_s=wanted.seconds,
        total_s=total_s,
    )
    _write(given.report, wanted.servers, section(ran, verdict, table(heals(book.records))))
    print(f"wrote {given.report.name}")
    if not verdict.violations:
        shutil.rmtree(folder)
    return 1 if verdict.violations else 0


def _command(given: argparse.Namespace) -> str:
    """How to run it again."""
    asked = f"--seed {given.seed} --jobs {given.jobs} --faults {given.faults} --minutes {given.minutes:g}"
    asked += " --cluster" if given.cluster else ""
    return f'make faults ARGS="{asked}{f" --only {given.only}" if given.only else ""}"'


def _write(report: Path, servers: int, text: str) -> None:
    sections = _sections(report)
    sections[servers] = text
    made = [KEEP.format(n) + sections[n] + KEEP.format(0) for n in sorted(sections)]
    report.write_text(page(made))


def _sections(report: Path) -> dict[int, str]:
    """The runs that the report has already, by their number of servers."""
    old = report.read_text() if report.exists() else ""
    return {n: old.split(KEEP.format(n))[1].split(KEEP.format(0))[0] for n in (1, 3) if KEEP.format(n) in old}


def _commit() -> str:
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
