"""The runtime that all services share, as a process of its own: start, readiness, drain, and every way to end."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from libs.common.contracts.streams import STREAMS
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
SECRET = "correct horse battery"
START_S = 20.0  # with every core busy
NO_NATS = "nats://127.0.0.1:1"


class Tiny:
    """One process of tests/common/tiny.py; `lines` are its log so far, every one of them JSON."""

    def __init__(self, folder: Path, nats_url: str, **settings: str) -> None:
        self.out, self.err = folder / "out", folder / "err"
        self.settings = {"ARRIERO_TINY_NATS_URL": nats_url, "ARRIERO_TINY_SECRET": SECRET} | settings
        self.http = httpx.AsyncClient(timeout=START_S)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *arguments: str) -> None:
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.common.tiny", *arguments,
                cwd=ROOT, env={**os.environ, **self.settings}, stdout=out, stderr=err,
            )  # fmt: skip

    @property
    def lines(self) -> list[dict[str, Any]]:
        whole = self.out.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]

    @property
    def said(self) -> str:
        return self.err.read_text()

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    async def until(self, event: str) -> dict[str, Any]:
        await eventually(lambda: self.logged(event) or self.over, within=START_S)
        assert self.logged(event), f"no {event}: {self.out.read_text()}{self.said}"
        return self.logged(event)[0]

    @property
    def over(self) -> bool:
        assert self._process
        return self._process.returncode is not None

    def send(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)

    async def ended(self, within: float = START_S) -> int:
        assert self._process
        return await asyncio.wait_for(self._process.wait(), within)

    async def stop(self) -> None:
        await self.http.aclose()
        if self._process and not self.over:
            self._process.kill()
            await self._process.wait()

    async def ops(self, path: str) -> httpx.Response:
        return await self.http.get(f"http://{(await self.until('service.started'))['ops']}{path}")

    async def problems(self) -> dict[str, str]:
        found: dict[str, str] = (await self.ops("/readyz")).json()["problems"]
        return found

    async def tell(self, path: str) -> None:
        assert (await self.http.get(await self.url(path))).status_code == 200

    async def url(self, path: str) -> str:
        return f"http://{(await self.until('service.started'))['ports'][0]}{path}"

    async def make_ready(self) -> None:
        await self.tell("/warm")
        await eventually(lambda: self.has_no_problem(), within=START_S)

    async def has_no_problem(self) -> bool:
        return await self.problems() == {}


Start = Callable[..., Any]


@pytest.fixture
async def tiny(nats: NatsServer, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a tiny service: `await tiny(name="value")` sets ARRIERO_TINY_NAME."""
    made: list[Tiny] = []

    async def start(nats_url: str = "", limits: dict[str, str] | None = None, **settings: str) -> Tiny:
        folder = tmp_path / f"tiny-{len(made)}"
        folder.mkdir()
        variables = {f"ARRIERO_TINY_{name.upper()}": value for name, value in settings.items()}
        made.append(Tiny(folder, nats_url or nats.url, **variables, **(limits or {})))
        await made[-1].start()
        return made[-1]

    try:
        yield start
    finally:
        for one in made:
            await one.stop()


# -- start and readiness -------------------------------------------------------------------------------------------------


async def test_it_is_ready_when_every_check_passes_and_says_which_do_not(tiny: Start) -> None:
    one = await tiny()
    alive = await one.ops("/livez")
    assert (alive.status_code, alive.json()) == (200, {"service": "tiny", "live": True})
    await eventually(lambda: only_cold(one))
    answer = await one.ops("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"service": "tiny", "ready": False, "problems": {"warm": "not warm yet"}}
    await one.tell("/warm")
    answer = await one.ops("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"service": "tiny", "ready": True, "problems": {}})
    metrics = await one.ops("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "process_cpu_seconds_total" in metrics.text
    assert (await one.ops("/other")).status_code == 404


async def only_cold(one: Tiny) -> bool:
    return list(await one.problems()) == ["warm"]


async def test_start_drain_and_end_go_in_order_and_the_exit_is_clean(tiny: Start) -> None:
    one = await tiny()
    await one.make_ready()
    one.send(signal.SIGTERM)
    await one.until("drain.began")
    # While it drains, its ports still answer, and who balances load is told to go elsewhere.
    assert (await one.ops("/readyz")).status_code == 503
    assert await one.problems() == {"draining": "shutting down"}
    assert (await one.ops("/livez")).status_code == 200
    await one.tell("/release")
    assert await one.ended() == 0
    assert [event for event in one.events if event != "service.files_limited"] == [  # as the machine allows
        "service.starting",
        "resource.entered",
        "resource.entered",
        "service.started",
        "task.began",
        "service.draining",
        "drain.began",
        "drain.ended",
        "task.ended",
        "resource.left",
        "resource.left",
        "bus.disconnected",
        "service.stopped",
    ]
    assert [(left["name"], left["listening"]) for left in one.logged("resource.left")] == [
        ("inner", False),
        ("outer", False),
    ]
    assert one.said == ""


async def test_an_interrupt_at_the_keyboard_drains_as_well(tiny: Start) -> None:
    one = await tiny(mode="no drain")
    await one.until("task.began")
    one.send(signal.SIGINT)
    assert await one.ended() == 0
    assert one.said == ""


async def test_a_second_signal_does_not_wait_for_the_drain(tiny: Start) -> None:
    one = await tiny(drain_grace="600", limits={"TINY_DRAIN_SLACK": "600"})
    await one.until("task.began")
    one.send(signal.SIGTERM)
    await one.until("drain.began")
    one.send(signal.SIGTERM)
    assert await one.ended() == 0
    assert one.logged("drain.ended")[0]["released"] is False
    assert len(one.logged("resource.left")) == 2


async def test_a_second_signal_hurries_a_service_that_has_something_to_hand_over(tiny: Start) -> None:
    one = await hurrying(tiny)
    await one.tell("/release")  # while it hurries, it still answers
    assert await one.ended() == 0
    assert one.logged("drain.ended")[0]["released"] is True
    assert [left["name"] for left in one.logged("resource.left")] == ["inner", "outer"]


async def test_a_third_signal_does_not_wait_for_the_hand_over(tiny: Start) -> None:
    one = await hurrying(tiny, limits={"TINY_DRAIN_SLACK": "600"})
    one.send(signal.SIGTERM)
    assert await one.ended() == 0
    assert one.logged("drain.ended")[0]["released"] is False
    assert len(one.logged("resource.left")) == 2


async def test_a_hand_over_that_does_not_end_is_cut_off(tiny: Start) -> None:
    one = await hurrying(tiny, limits={"TINY_DRAIN_SLACK": "0.2"})
    assert await one.ended() == 0
    assert one.logged("drain.ended")[0]["released"] is False


async def hurrying(tiny: Start, **more: Any) -> Tiny:
    """One that has got its second signal, while it waits for its work longer than any test."""
    one: Tiny = await tiny(mode="hurries", drain_grace="600", **more)
    await one.until("task.began")
    one.send(signal.SIGTERM)
    await one.until("drain.began")
    one.send(signal.SIGTERM)
    await one.until("drain.hurries")
    return one


async def test_a_drain_that_does_not_end_is_cut_off_after_the_grace(tiny: Start) -> None:
    one = await tiny(drain_grace="0.3", limits={"TINY_DRAIN_SLACK": "0.2"})
    await one.until("task.began")
    one.send(signal.SIGTERM)
    assert await one.ended() == 0
    assert one.logged("drain.ended")[0]["released"] is False


async def test_a_drain_that_fails_is_logged_and_the_rest_is_still_left_in_order(tiny: Start) -> None:
    one = await tiny(mode="drain fails")
    await one.until("task.began")
    one.send(signal.SIGTERM)
    assert await one.ended() == 1
    [failed] = one.logged("task.failed")
    assert "cannot drain" in failed["exception"]
    assert [left["name"] for left in one.logged("resource.left")] == ["inner", "outer"]


async def test_an_open_stream_does_not_keep_the_process_alive(tiny: Start) -> None:
    one = await tiny(mode="no drain", drain_grace="600")
    async with one.http.stream("GET", await one.url("/stream")) as answer:
        chunks = answer.aiter_bytes()
        await anext(chunks)
        one.send(signal.SIGTERM)
        assert await one.ended() == 0
        with contextlib.suppress(httpx.HTTPError, StopAsyncIteration):
            while True:
                await anext(chunks)
    assert one.events.index("stream.ended") < one.events.index("resource.left")


# -- failures ------------------------------------------------------------------------------------------------------------


async def test_a_task_that_raises_is_logged_once_and_ends_the_process_with_1(tiny: Start) -> None:
    one = await tiny()
    await one.tell("/fail")
    assert await one.ended() == 1
    [failed] = one.logged("task.failed")
    assert (failed["task"], failed["level"]) == ("tiny.endless", "error")
    assert "told to fail" in failed["exception"]
    assert "drain.began" not in one.events
    assert [left["name"] for left in one.logged("resource.left")] == ["inner", "outer"]


@pytest.mark.parametrize("which", ["PORT", "OPS_PORT"])
async def test_a_taken_port_is_one_clear_line_and_1(tiny: Start, which: str) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    one = await tiny(**{which: str(port)})
    assert await one.ended() == 1
    assert one.said == f"arriero-tiny: cannot listen on 127.0.0.1:{port}: the port is taken\n"
    assert one.logged("service.start_failed")
    assert not {"service.started", "task.began", "task.failed", "library.logged"} & set(one.events)
    assert one.events[-1] == "service.stopped"
    taken.close()


async def test_an_unreachable_nats_is_one_sentence_and_1(tiny: Start) -> None:
    one = await tiny("nats://me:hunter2@127.0.0.1:1", {"TINY_CONNECT_LIMIT": "0.5"}, nats_user="tiny")
    assert await one.ended() == 1
    assert one.said.count("\n") == 1
    assert one.said.startswith("arriero-tiny: cannot reach NATS at nats://127.0.0.1:1 as user tiny: ")
    assert "hunter2" not in one.said + one.out.read_text()
    assert "resource.entered" not in one.events


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [("start fails", "the weather is bad: wait"), ("bus fails", "nobody answers on nobody")],
)
async def test_a_start_that_fails_is_one_sentence_and_1(tiny: Start, mode: str, sentence: str) -> None:
    one = await tiny(mode=mode)
    assert await one.ended() == 1
    assert one.said == f"arriero-tiny: {sentence}\n"
    assert [left["name"] for left in one.logged("resource.left")] == ["inner", "outer"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_while_it_waits_for_nats_ends_it_quietly(tiny: Start, number: signal.Signals) -> None:
    one = await tiny(NO_NATS)
    await one.until("bus.error")
    one.send(number)
    assert await one.ended() == 0
    assert one.said == ""
    assert one.events[-1] == "service.stopped"


async def test_a_signal_during_the_services_own_start_leaves_what_it_had(tiny: Start) -> None:
    one = await tiny(mode="start hangs")
    await eventually(lambda: len(one.logged("resource.entered")) == 2, within=START_S)
    one.send(signal.SIGTERM)
    assert await one.ended() == 0
    assert [left["name"] for left in one.logged("resource.left")] == ["inner", "outer"]
    assert one.said == ""


# -- NATS comes and goes -------------------------------------------------------------------------------------------------


async def test_while_nats_is_away_it_is_not_ready_and_later_it_is_again(tiny: Start, nats: NatsServer) -> None:
    one = await tiny()
    await one.make_ready()
    await nats.kill()
    await eventually(lambda: has_problem(one, "nats"))
    assert (await one.problems())["nats"] == "not connected to NATS"
    assert (await one.ops("/livez")).status_code == 200
    await nats.start()
    await eventually(lambda: one.has_no_problem())
    assert one.events.count("service.starting") == 1
    assert "bus.reconnected" in one.events


async def has_problem(one: Tiny, name: str) -> bool:
    return name in await one.problems()


async def test_a_connection_lost_for_good_ends_the_process_with_1(tmp_path: Path, tiny: Start) -> None:
    users = 'accounts { A { jetstream: enabled, users: [{user: "keeper", password: "k"}%s] } }\n'
    server = NatsServer(tmp_path / "users", users % ', {user: "tiny", password: "t"}')
    await server.start()
    try:
        one = await tiny(server.url, nats_user="tiny", nats_password="t")
        await one.until("task.began")
        server.reload(users % "")
        assert await one.ended() == 1
        assert one.logged("bus.lost")
        assert [left["name"] for left in one.logged("resource.left")] == ["inner", "outer"]
    finally:
        await server.kill()


async def test_streams_that_differ_keep_it_from_ready_until_they_are_mended(tiny: Start, nats: NatsServer) -> None:
    async with connected(nats) as bus:
        config = (await bus.api("STREAM.INFO.KV_models"))["config"]
        await bus.api("STREAM.DELETE.KV_models")
        await bus.api("STREAM.UPDATE.OUT", {**(await bus.api("STREAM.INFO.OUT"))["config"], "max_age": 600_000_000_000})
        one = await tiny()
        await one.tell("/warm")
        await eventually(lambda: has_problem(one, "streams"))
        said = (await eventually(lambda: compared(one)))["streams"]
        assert "stream KV_models does not exist: run `arriero nats init`" in said
        assert "stream OUT: max_age is 600000000000, should be 4500000000000" in said
        assert len(one.logged("streams.differ")) == 1
        assert (await bus.api("STREAM.NAMES"))["total"] == len(STREAMS) - 1  # it made nothing
        assert (await bus.api("STREAM.INFO.OUT"))["config"]["max_age"] == 600_000_000_000  # and mended nothing
        config.pop("metadata", None)
        await bus.api("STREAM.CREATE.KV_models", config)
        out = (await bus.api("STREAM.INFO.OUT"))["config"]
        await bus.api("STREAM.UPDATE.OUT", {**out, "max_age": 4_500_000_000_000})
        await eventually(lambda: one.has_no_problem())


async def compared(one: Tiny) -> dict[str, str] | None:
    problems = await one.problems()
    return None if problems["streams"] == "not compared yet" else problems


async def test_streams_that_vanish_with_a_restart_of_nats_are_noticed(tiny: Start, nats: NatsServer) -> None:
    one = await tiny()
    await one.make_ready()
    async with connected(nats) as bus:
        await bus.api("STREAM.DELETE.KV_models")
    await nats.kill()
    await nats.start()
    await eventually(lambda: missing_models(one))


async def missing_models(one: Tiny) -> bool:
    return "KV_models does not exist" in (await one.problems()).get("streams", "")


# -- the log -------------------------------------------------------------------------------------------------------------


async def test_every_log_line_is_json_with_service_and_event_also_those_of_libraries(tiny: Start) -> None:
    one = await tiny(mode="no drain")
    await one.tell("/warn")
    one.send(signal.SIGTERM)
    assert await one.ended() == 0
    assert one.said == ""
    for line in one.lines:
        assert line["service"] == "tiny"
        assert line["event"]
        assert line["level"] in ("debug", "info", "warning", "error")
        assert line["ts"].endswith("Z")
    heard = [(line["logger"], line["message"]) for line in one.logged("library.logged")]
    assert heard[:3] == [
        ("some.library", "it is late"),
        ("some.library", "%d arguments that do not fit"),
        ("some.library", "cannot reach nats://there:4222"),
    ]
    assert heard[3][0] == "py.warnings"
    assert "old-fashioned" in heard[3][1]
    assert heard[4] == ("some.library", "it broke")
    assert "ValueError: inside" in one.logged("library.logged")[4]["exception"]


async def test_no_secret_is_ever_in_the_log(tiny: Start, nats: NatsServer) -> None:
    url = nats.url.replace("nats://", "nats://someone:in-the-url@")
    one = await tiny(url, nats_password="not for logs", log_level="debug", mode="no drain")
    await one.until("task.began")
    one.send(signal.SIGTERM)
    assert await one.ended() == 0
    written = one.out.read_text() + one.said
    assert not [secret for secret in (SECRET, "not for logs", "in-the-url") if secret in written]
    [starting] = one.logged("service.starting")
    assert (starting["settings"]["secret"], starting["settings"]["nats_url"]) == ("(set)", nats.url)
