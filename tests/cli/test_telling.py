"""What `arriero up` prints."""

import json
import shlex
from pathlib import Path

import pytest

from libs.cli.home import UpFile
from libs.cli.output import table
from libs.cli.up.narrator import JsonLines, Terminal
from libs.cli.up.summary import summary

UP = UpFile(
    gateway="http://127.0.0.1:8700",
    auth="http://127.0.0.1:8701",
    nats="nats://127.0.0.1:8702",
    client_id="demo",
    client_secret="secret",
    api_key="the-key",
    ops={},
    pids={},
)


def test_the_lines_to_paste_are_whole_shell_lines_with_valid_json():
    text = summary(
        UP, gateways=[UP.gateway], model="llama3.2:3b", nats_env=Path("/h/nats-demo.env"), logs=Path("/h/logs")
    )
    lines = [line.strip() for line in text.splitlines() if "curl" in line]

    assert len(lines) == 3
    chat, job, stream = (shlex.split(line.removeprefix("ID=$(")) for line in lines)
    assert json.loads(chat[chat.index("-d") + 1])["stream"] is True
    assert json.loads(job[job.index("-d") + 1])["model"] == "llama3.2:3b"
    assert stream[2] == "http://127.0.0.1:8700/jobs/$ID/stream"
    assert all("Authorization: Bearer the-key" in words for words in (chat, job, stream))
    assert "OPENAI_BASE_URL=http://127.0.0.1:8700/v1 OPENAI_API_KEY=the-key" in text


def test_without_a_terminal_lines_are_plain_and_never_wrapped(capsys: pytest.CaptureFixture[str]):
    voice = Terminal()
    voice.say("x", "a sentence [with brackets]", style="bold")
    voice.piece("Hel")
    voice.piece("lo", thinking=True)
    voice.result("y" * 300)
    voice.warn("z", "wrong", lines=["last words"])

    said = capsys.readouterr()
    assert said.out == f"a sentence [with brackets]\nHello\n{'y' * 300}\n"
    assert said.err == "wrong\n    last words\n"


def test_quiet_keeps_results_and_warnings(capsys: pytest.CaptureFixture[str]):
    voice = Terminal(quiet=True)
    voice.say("x", "progress")
    voice.warn("x", "wrong")
    voice.result("result")

    said = capsys.readouterr()
    assert (said.out, said.err) == ("result\n", "wrong\n")


def test_for_programs_every_line_is_one_object(capsys: pytest.CaptureFixture[str]):
    voice = JsonLines()
    voice.say("process.ready", "auth ready", style="dim", process="auth")
    voice.warn("process.died", "auth ended", process="auth")
    voice.piece("Hel")
    voice.result("text", gateway="http://x")

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        {"event": "process.ready", "message": "auth ready", "process": "auth"},
        {"event": "process.died", "level": "warning", "message": "auth ended", "log": [], "process": "auth"},
        {"event": "answer.piece", "text": "Hel"},
        {"event": "ready", "gateway": "http://x"},
    ]


def test_tables_line_up():
    assert table([("a", None), ("bbb", 2)], ("X", "Y")) == "X    Y\na    -\nbbb  2"
    assert table([], ("X",)) == "(none)"
