"""A short seeded fault run over real processes: what clients saw is checked by the same checker as in `make faults`."""

from pathlib import Path

import pytest

from tests.faults.checker import check
from tests.faults.records import Book
from tests.faults.run import Wanted, fault_run

pytestmark = pytest.mark.e2e


async def test_nothing_lost_nothing_twice_while_processes_are_killed_and_frozen(tmp_path: Path) -> None:
    """DESIGN §7.1 to 4 and 8, on a single nats-server."""
    wanted = Wanted(
        seed=1, jobs=220, faults=8, seconds=16, deadline_s=25, longest_stop_s=5, hangs=False, long_cuts=False,
        must_have=True, rest_s=45,
    )  # fmt: skip
    book = Book(tmp_path / "records.jsonl")
    try:
        await fault_run(wanted, tmp_path, book)
    finally:
        book.close()

    verdict = check(book.records)

    assert [str(violation) for violation in verdict.violations] == []
    assert verdict.counts["jobs acknowledged"] >= 180
    assert verdict.counts["faults"] == 11
    assert verdict.counts["faults that cut a service off from NATS"] >= 2
