"""`arriero simulate --export`: own jobs as a trace."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from libs.cli.failures import CommandFailed
from libs.cli.main import app
from tests.cli.answering import Asked, Reply, answering, as_json


def _job(number: int, second: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"job_{number}", "model": "llama3.2:3b", "priority": "normal", "created_at": f"2026-03-01T10:00:{second}+00:00",
        "usage": {"prompt_tokens": number, "completion_tokens": 10 * number}, **more,
    }  # fmt: skip


def _answer(jobs: dict[str, dict[str, Any]], pages: dict[str | None, tuple[list[str], str | None]]):
    def answer(asked: Asked) -> Reply:
        if asked.path == "/jobs":
            assert asked.query["state"] == "succeeded"
            ids, cursor = pages[asked.query.get("cursor")]
            return as_json({"jobs": [{"id": name} for name in ids], "cursor": cursor})
        found = jobs.get(asked.path.removeprefix("/jobs/"))
        return as_json(found) if found else as_json({"code": "job_not_found", "detail": "No such job."}, 404)

    return answer


def _export(*arguments: str) -> None:
    command = typer.main.get_command(app)
    command.main(["simulate", *arguments], standalone_mode=False)


async def _run(monkeypatch: pytest.MonkeyPatch, answer: Any, *arguments: str) -> list[str]:
    import asyncio

    async with answering(answer) as server:
        monkeypatch.setenv("ARRIERO_URL", server.url)
        monkeypatch.setenv("ARRIERO_API_KEY", "key")
        await asyncio.to_thread(_export, *arguments)
        return [asked.path for asked in server.asked]


async def test_finished_jobs_of_all_pages_become_lines_in_order_of_their_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    jobs = {
        "job_1": _job(1, "05.500"),
        "job_2": _job(2, "02.250", priority="batch"),
        "job_3": _job(3, "09.000", usage=None),  # nothing to learn from
    }
    pages = {None: (["job_1"], "7"), "7": ([], "9"), "9": (["job_1", "job_2", "job_3", "job_gone"], None)}
    file = tmp_path / "mine.jsonl"

    asked = await _run(monkeypatch, _answer(jobs, pages), "--export", str(file))

    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"t": 0, "model": "llama3.2:3b", "prompt_tokens": 2, "output_tokens": 20, "priority": "batch"},
        {"t": 3.25, "model": "llama3.2:3b", "prompt_tokens": 1, "output_tokens": 10, "priority": "normal"},
    ]
    assert asked.count("/jobs/job_1") == 1
    assert capsys.readouterr().err == "2 jobs\n"


async def test_nothing_to_export_is_an_empty_file_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    await _run(monkeypatch, _answer({}, {None: ([], None)}), "--export", str(tmp_path / "none.jsonl"))

    assert (tmp_path / "none.jsonl").read_bytes() == b""
    assert capsys.readouterr().err == "0 jobs\n"


async def test_a_file_that_cannot_be_written_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(CommandFailed, match="cannot be written: No such file"):
        await _run(monkeypatch, _answer({}, {None: ([], None)}), "--export", str(tmp_path / "no" / "t.jsonl"))


def test_export_stands_alone():
    with pytest.raises(CommandFailed, match="--export stands alone: what is '--json' for"):
        _export("--export", "x.jsonl", "--json")
