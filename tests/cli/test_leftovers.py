"""Processes that an earlier run left behind: ended when they are provably ours, otherwise left alone."""

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest

from libs.cli.failures import CommandFailed
from libs.cli.home import Home
from libs.cli.up.leftovers import Run, Trace, end, survivors, trace

SLEEP = (sys.executable, "-S", "-E", "-c", "import time; time.sleep(60)")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.open()
    return home


def _remember(home: Home, **children: Trace) -> None:
    home.write(home.run_json, msgspec.json.encode(Run(children)))


async def test_a_survivor_is_found_and_ended(home: Home):
    process = await asyncio.create_subprocess_exec(*SLEEP)
    found = trace(process.pid)
    assert found
    _remember(home, worker=found)

    assert survivors(home) == {"worker": found}
    await asyncio.to_thread(end, {"worker": found})

    assert await process.wait() != 0
    assert survivors(home) == {}


def test_a_pid_that_was_given_to_somebody_else_is_not_ours(home: Home):
    mine = trace(os.getpid())
    assert mine
    _remember(home, worker=Trace(mine.pid, mine.started + "0"))

    assert survivors(home) == {}


def test_without_an_earlier_run_there_are_none(home: Home):
    assert survivors(home) == {}


def test_a_damaged_list_says_what_to_do(home: Home):
    home.run_json.write_text("{")

    with pytest.raises(CommandFailed, match="make sure that none is left"):
        survivors(home)
