"""`arriero job explain`, dry runs, and the policy of a new client: what is asked, and what humans and programs read."""

import asyncio
import json
import os
import sys
from typing import Any

import pytest

from libs.cli.admin import Admin
from libs.cli.explaining import explained, quoted
from libs.cli.http import connect
from libs.cli.job import _print_text
from libs.cli.sse import ServerEvent
from tests.cli.answering import Answering, Asked, Reply, answering, as_json

NOTHING = dict.fromkeys(("wait_s", "load_s", "prefill_s", "decode_s", "harm_s", "score_s"))
DECISION: dict[str, Any] = {
    "node": "big", "reason": "it has the model", "cold": False, "waited_s": 1.5, "ttft_s": 2.25, "load_s": 0.0,
    "cached_tokens": 900,
    "candidates": [
        {"node": "away", "verdict": "draining"} | NOTHING,
        {"node": "slow", "verdict": "slower", "wait_s": 0.0, "load_s": 9.0, "prefill_s": 3.0, "decode_s": 20.0,
         "harm_s": 1.0, "score_s": 13.0},
        {"node": "big", "verdict": "chosen", "wait_s": 2.0, "load_s": 0.0, "prefill_s": 0.25, "decode_s": 4.0,
         "harm_s": 0.0, "score_s": 2.25},
    ],
}  # fmt: skip
JOB: dict[str, Any] = {
    "id": "job_1",
    "state": "running",
    "node": "big",
    "position": None,
    "eta_s": None,
    "finished_at": None,
}


def test_a_decision_is_a_table_with_the_chosen_node_first_and_the_refused_last() -> None:
    lines = explained(JOB | {"decision": DECISION, "waiting": None}).splitlines()
    assert lines[0] == "job_1  running on big"
    assert "900 tokens of the prompt are believed to be cached there" in lines
    rows = [line.split() for line in lines[lines.index("") + 1 :]][:4]
    assert rows[0] == ["NODE", "WAIT", "LOAD", "PREFILL", "DECODE", "HARM", "SCORE", "VERDICT"]
    assert rows[1] == ["big", "2.00", "0.00", "0.25", "4.00", "0.00", "2.25", "chosen"]
    assert rows[2][0] == "slow"
    assert rows[3] == ["away", *["-"] * 6, "draining"]


def test_a_job_that_waits_tells_its_place_and_what_it_waits_for() -> None:
    waiting = JOB | {"state": "queued", "node": None, "position": 3, "eta_s": 12.3, "decision": None}
    assert explained(waiting | {"waiting": "all slots are taken"}).splitlines() == [
        "job_1  queued",
        "position 3, expected to start in 12.3 s",
        "it waits: all slots are taken",
        "No node was chosen yet.",
    ]
    assert "No decision is kept" in explained(JOB | {"state": "succeeded", "finished_at": "now", "decision": None})


def test_a_quote_tells_where_and_when_or_why_nowhere() -> None:
    text = quoted({"decision": DECISION, "reason": None, "eta_s": 4.0, "finish_s": 11.5})
    assert text.splitlines()[:2] == ["It would go to big.", "first token in about 4.0 s, end in about 11.5 s"]
    assert "slow" in text
    assert quoted({"decision": None, "reason": "no node has 90 GB"}) == "No node could take it: no node has 90 GB"


def test_what_comes_before_an_answer_is_told_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    for name, data in (
        ("queued", {"id": "job_1", "position": 2, "eta_s": 40.4}),
        ("queued", {"id": "job_1", "position": None, "eta_s": None}),
        ("bound", {"node": "big", "epoch": 4}),
        ("loading", {"node": "big", "model": "m", "elapsed_s": 2.0, "expected_s": 9.6}),
        ("loading", {"node": "big", "model": "m", "elapsed_s": 2.0, "expected_s": None}),
    ):
        _print_text(ServerEvent(name, json.dumps(data), ""))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "(queued, position 2, starts in about 40 s)",
        "(queued)",
        "(bound on big)",
        "(loading on big, 2 s of about 10)",
        "(loading on big, 2 s)",
    ]


async def _said(server: Answering, *words: str) -> tuple[int, str]:
    environment = {**os.environ, "ARRIERO_URL": server.url, "ARRIERO_API_KEY": "key"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "libs.cli", "job", *words, env=environment, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_job_explain_asks_for_it_and_prints_it_for_programs_as_it_came() -> None:
    job = JOB | {"decision": DECISION, "waiting": None}
    async with answering(lambda asked: as_json(job)) as server:
        code, said = await _said(server, "explain", "job_1", "--json")
    assert (code, json.loads(said)) == (0, job)
    assert [(asked.method, asked.path, asked.query) for asked in server.asked] == [
        ("GET", "/jobs/job_1", {"explain": "1"})
    ]


async def test_a_dry_run_is_asked_for_as_one() -> None:
    quote = {"dry_run": True, "decision": DECISION, "reason": None, "eta_s": 4.0, "finish_s": 11.5}
    async with answering(lambda asked: as_json(quote)) as server:
        code, said = await _said(server, "submit", "m", "hi", "--dry-run", "--deadline", "30")
        both = await _said(server, "submit", "m", "hi", "--dry-run", "--watch")
    assert (code, said.splitlines()[0]) == (0, "It would go to big.")
    assert both[0] == 2
    [asked] = server.asked
    assert (asked.query, asked.json["deadline_s"]) == ({"dry_run": "1"}, 30)


async def test_a_new_client_gets_the_policy_that_was_asked_for() -> None:
    made = {"client_id": "ci", "client_secret": "s", "name": "ci", "scopes": []}

    def answer(asked: Asked) -> Reply:
        return as_json({"api_key": "k", "key_id": "i"} if asked.path.endswith("/keys") else made, 201)

    async with answering(answer) as server, connect(server.url) as http:
        await Admin(http).create_client("ci", policy={"weight": 2.0, "max_running": 3, "priority": "batch"})
        await Admin(http).create_client("ci")
    assert server.asked[0].json == {"name": "ci", "policy": {"weight": 2.0, "max_running": 3, "priority": "batch"}}
    assert server.asked[2].json == {"name": "ci"}
