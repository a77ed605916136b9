"""Keeping processes alive: tiny children, and a readiness that the test itself decides."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from libs.cli.up import supervisor
from libs.cli.up.leftovers import trace
from libs.cli.up.log_files import LogFiles
from libs.cli.up.processes import Process, Stage
from libs.cli.up.supervisor import Change, Died, NeverReady, Ready, Started, Supervisor, how_it_ended, why_not_ready
from tests.support.waiting import eventually

PYTHON = (sys.executable, "-S", "-E", "-c")
SLEEP = (*PYTHON, "import time; time.sleep(60)")
# Ignores SIGTERM.
STUBBORN = (
    *PYTHON,
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('set', flush=True); time.sleep(60)",
)
SOON_S = 20.0  # far above what anything takes here, far below what a process is given


@dataclass
class Scene:
    """A supervisor, what it said, and the switch of every child's readiness."""

    url: str
    logs: LogFiles
    said: list[Change] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    is_ready: bool = True
    supervisor: Supervisor = field(init=False)

    def __post_init__(self) -> None:
        self.supervisor = Supervisor(self.logs, self.said.append, pause=self._pause)

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def start(self, *argv: str, name: str = "child", needed: bool = True) -> None:
        self.supervisor.start(Process(name=name, argv=argv, ready=self.url, stage=Stage.EDGE, needed=needed))

    def heard(self, kind: type[Any]) -> list[Any]:
        return [change for change in self.said if isinstance(change, kind)]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.0 200 x\r\n\r\n" if made.is_ready else b'HTTP/1.0 503 x\r\n\r\n{"problems":{"a":"b"}}'
            )
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):  # who asked has ended, perhaps before it had asked
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        made = Scene(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", LogFiles(tmp_path))
        yield made
        await made.supervisor.stop(list(made.supervisor.pids), within=0)


async def test_a_process_is_ready_when_it_says_so(scene: Scene):
    scene.is_ready = False
    scene.start(*SLEEP)
    await eventually(lambda: scene.heard(Started))
    waiting = asyncio.create_task(scene.supervisor.until_ready(["child"]))
    assert not scene.supervisor.all_ready

    scene.is_ready = True
    await asyncio.wait_for(waiting, SOON_S)

    assert scene.supervisor.all_ready
    assert scene.heard(Ready)[0].again is False
    assert scene.supervisor.pids == {"child": scene.heard(Started)[0].pid}


async def test_what_is_killed_is_started_again_and_becomes_ready_again(scene: Scene):
    scene.start(*SLEEP)
    await scene.supervisor.until_ready(["child"])
    first = scene.supervisor.pids["child"]

    os.kill(first, signal.SIGKILL)
    await eventually(lambda: len(scene.heard(Ready)) == 2)

    assert scene.heard(Died) == [Died("child", -signal.SIGKILL, 0.5)]
    assert scene.heard(Ready)[1].again is True
    assert scene.supervisor.pids["child"] != first


async def test_what_dies_again_and_again_is_given_more_and_more_time(scene: Scene, tmp_path: Path):
    """The first run stays, the others end at once."""
    once = f"import os, time; p = {str(tmp_path / 'ran')!r}; r = os.path.exists(p); open(p, 'w').close(); r or time.sleep(60)"
    scene.start(*PYTHON, once)
    await scene.supervisor.until_ready(["child"])
    await eventually((tmp_path / "ran").exists)

    os.kill(scene.supervisor.pids["child"], signal.SIGKILL)
    await eventually(lambda: len(scene.pauses) >= 6)

    assert scene.pauses[:6] == [0.5, 1, 2, 4, 8, 10]


async def test_a_process_that_ends_before_it_was_ready_is_told_and_not_tried_again(scene: Scene):
    scene.is_ready = False
    scene.start(*PYTHON, "import sys; print('the reason'); sys.exit(3)")

    with pytest.raises(NeverReady, match=r"child ended before it was ready .exit code 3"):
        await scene.supervisor.until_ready(["child"])

    assert scene.logs.tail("child") == ["the reason"]
    assert scene.heard(Died) == []


async def test_what_nobody_waits_for_is_tried_again_even_if_it_never_was_ready(scene: Scene):
    """The worker of an Ollama that is away."""
    scene.is_ready = False
    scene.start(*SLEEP, needed=False)
    await eventually(lambda: scene.heard(Started))
    os.kill(scene.supervisor.pids["child"], signal.SIGKILL)
    await eventually(lambda: len(scene.heard(Started)) == 2)
    assert scene.supervisor.all_ready

    scene.is_ready = True
    await eventually(lambda: scene.heard(Ready))

    assert scene.heard(Died) == [Died("child", -signal.SIGKILL, 0.5)]
    assert scene.heard(Ready)[0].again is True


async def test_a_program_that_is_not_there_is_told(scene: Scene):
    scene.start("/nonexistent/program")

    with pytest.raises(NeverReady, match="child cannot be started: No such file"):
        await scene.supervisor.until_ready(["child"])


async def test_stopping_asks_first_and_insists_later(scene: Scene):
    scene.start(*SLEEP, name="polite")
    scene.start(*STUBBORN, name="stubborn")
    await scene.supervisor.until_ready(["polite", "stubborn"])
    await eventually(lambda: scene.logs.tail("stubborn") == ["set"])
    pids = scene.supervisor.pids
    polite = scene.supervisor._children["polite"].keeper
    assert polite
    insist = asyncio.Event()
    stopping = asyncio.create_task(scene.supervisor.stop(["polite", "stubborn"], within=600, insist=insist))
    await asyncio.wait_for(asyncio.shield(polite), SOON_S)

    insist.set()

    assert await asyncio.wait_for(stopping, SOON_S) == ["stubborn"]
    assert scene.supervisor.pids == {}
    assert [trace(pid) for pid in pids.values()] == [None, None]
    assert scene.heard(Died) == []


async def test_after_its_time_it_is_insisted_by_itself(scene: Scene):
    scene.start(*STUBBORN)
    await eventually(lambda: scene.logs.tail("child") == ["set"])

    assert await asyncio.wait_for(scene.supervisor.stop(["child"], within=0.3), SOON_S) == ["child"]


async def test_who_insists_does_not_wait(scene: Scene):
    scene.start(*STUBBORN)
    await eventually(lambda: scene.logs.tail("child") == ["set"])
    insist = asyncio.Event()
    stopping = asyncio.create_task(scene.supervisor.stop(["child"], within=600, insist=insist))

    insist.set()

    assert await asyncio.wait_for(stopping, SOON_S) == ["child"]


HANDS_OVER = """
import signal, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: (asked.append(1), print("asked", len(asked), flush=True)))
print("set", flush=True)
while len(asked) < 2:
    time.sleep(0.01)
print("handed over", flush=True)
"""


async def test_who_is_told_to_hurry_may_still_hand_over(scene: Scene):
    scene.start(*PYTHON, HANDS_OVER)
    await eventually(lambda: scene.logs.tail("child") == ["set"])
    hurry = asyncio.Event()
    stopping = asyncio.create_task(scene.supervisor.stop(["child"], within=600, hurry=hurry, insist=asyncio.Event()))
    await eventually(lambda: scene.logs.tail("child")[-1] == "asked 1")

    hurry.set()

    assert await asyncio.wait_for(stopping, SOON_S) == []
    assert scene.logs.tail("child")[-2:] == ["asked 2", "handed over"]


async def test_who_does_not_hurry_is_killed(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "HURRIED_S", 0.2)
    scene.start(*STUBBORN)
    await eventually(lambda: scene.logs.tail("child") == ["set"])
    hurry = asyncio.Event()
    hurry.set()

    assert await asyncio.wait_for(scene.supervisor.stop(["child"], within=600, hurry=hurry), SOON_S) == ["child"]


async def test_what_waits_to_be_started_again_is_not_started_any_more(scene: Scene):
    pausing = asyncio.Event()

    async def pause(seconds: float) -> None:
        pausing.set()
        await asyncio.Event().wait()

    scene.supervisor = Supervisor(scene.logs, scene.said.append, pause=pause)
    scene.start(*SLEEP)
    await scene.supervisor.until_ready(["child"])
    os.kill(scene.supervisor.pids["child"], signal.SIGKILL)
    await asyncio.wait_for(pausing.wait(), SOON_S)

    assert await scene.supervisor.stop(["child"], within=5) == []
    assert len(scene.heard(Started)) == 1


async def test_stopping_while_a_process_is_being_started_leaves_nothing(scene: Scene):
    scene.start(*SLEEP)
    await asyncio.sleep(0)  # the keeper runs up to the fork

    await scene.supervisor.stop(["child"], within=5)

    assert [trace(started.pid) for started in scene.heard(Started)] in ([], [None])


async def test_a_child_is_a_session_of_its_own(scene: Scene):
    """So a terminal's Ctrl-C reaches only `up`."""
    scene.start(*SLEEP)
    await scene.supervisor.until_ready(["child"])
    pid = scene.supervisor.pids["child"]

    assert os.getsid(pid) == pid


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next `arriero up` ends what is left")
async def test_children_end_when_their_parent_is_killed(tmp_path: Path):
    program = f"""
import asyncio, pathlib
from libs.cli.up.log_files import LogFiles
from libs.cli.up.processes import Process, Stage
from libs.cli.up.supervisor import Started, Supervisor
async def main():
    def changed(change):
        if isinstance(change, Started):
            print(change.pid, flush=True)
    supervisor = Supervisor(LogFiles(pathlib.Path({str(tmp_path)!r})), changed)
    supervisor.start(Process(name="child", argv={SLEEP!r}, ready="http://127.0.0.1:9/", stage=Stage.EDGE))
    await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert parent.stdout
    child = int(await parent.stdout.readline())
    assert trace(child)

    parent.kill()
    await parent.communicate()

    await eventually(lambda: trace(child) is None)


@pytest.mark.parametrize(
    ("code", "text"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "SIGKILL"), (-99, "signal 99")]
)
def test_an_ending_is_named(code: int, text: str):
    assert how_it_ended(code) == text


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, "it does not answer"),
        ((503, b'{"problems":{"nats":"away","streams":"differ"}}'), "nats: away; streams: differ"),
        ((503, b'{"problems":{}}'), "status 503"),
        ((500, b"<html>"), "status 500"),
        ((500, b"[]"), "status 500"),
    ],
)
def test_why_a_process_is_not_ready_is_its_own_word(answer: tuple[int, bytes] | None, text: str):
    assert why_not_ready(answer) == text
