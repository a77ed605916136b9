"""One log per process: the run before is kept, and none grows without end."""

from pathlib import Path

import pytest

from libs.cli.up import log_files
from libs.cli.up.log_files import TAIL_LINES, LogFiles


def _write(logs: LogFiles, text: str) -> None:
    with logs.open("auth") as file:
        file.write(text.encode())


def test_restarts_append_and_a_new_run_keeps_the_one_before(tmp_path: Path):
    for run in ("first", "second", "third"):
        logs = LogFiles(tmp_path)
        _write(logs, f"{run} start\n")
        _write(logs, f"{run} restart\n")

    assert (tmp_path / "auth.log").read_text() == "third start\nthird restart\n"
    assert (tmp_path / "auth.log.1").read_text() == "second start\nsecond restart\n"


def test_a_log_over_the_limit_is_cut_while_its_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_files, "LIMIT", 10)
    logs = LogFiles(tmp_path)
    with logs.open("auth") as child:
        child.write(b"a long line\n")
        logs.trim()
        child.write(b"short\n")
        logs.trim()

    assert (tmp_path / "auth.log").read_text() == "short\n"
    assert (tmp_path / "auth.log.1").read_text() == "a long line\n"


def test_the_tail_is_the_last_lines(tmp_path: Path):
    logs = LogFiles(tmp_path)
    _write(logs, "".join(f"line {n}\n" for n in range(10_000)))

    assert logs.tail("auth")[-1] == "line 9999"
    assert len(logs.tail("auth")) == TAIL_LINES
    assert logs.tail("unknown") == []
