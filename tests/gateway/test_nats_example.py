"""The program of docs/nats.md, as it stands there, against a real nats-server with the users that `arriero up` makes."""

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import nats as nats_py
import pytest

from libs.common.bus.connection import Bus
from libs.common.contracts.clients import DEFAULT_SCOPES, Client
from libs.common.contracts.codec import encode
from libs.common.contracts.permissions import client_user, permissions
from libs.common.runtime import Running
from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.server import running as running_node
from services.gateway.internal import SCOPES
from services.gateway.main import start as start_gateway
from services.gateway.settings import GatewaySettings
from services.router.main import start as start_router
from services.router.settings import RouterSettings
from services.worker.main import start as start_worker
from services.worker.settings import WorkerSettings
from tests.gateway.running import SECRET
from tests.support.nats_server import NatsServer
from tests.support.nats_users import Users, server_with_users
from tests.support.waiting import eventually

PAGE = Path(__file__).parents[2] / "docs" / "nats.md"
CLIENT = "billing"
SERVICES = ("admin", "gateway", "router", "worker-node-a")


class SecuredServer:
    """With the users and permissions that `arriero up` gives it."""

    def __init__(self, inner: NatsServer, users: Users, folder: Path) -> None:
        self.url, self.users, self._inner = inner.url, users, inner
        self.seed_file = folder / f"nats-client-{CLIENT}.nk"
        self.seed_file.write_text(users.seeds[CLIENT] + "\n")

    def user(self, name: str) -> contextlib.AbstractAsyncContextManager[Bus]:
        return self.users.connected(self._inner, name)


@contextlib.asynccontextmanager
async def working(running: Running) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(task) for task in running.tasks.values()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [error for error in ended if isinstance(error, Exception)], ended


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[SecuredServer]:
    """One node, one worker, one router, one gateway, each with its NATS user; and the client, known to auth's bucket."""
    users = Users(nodes=["node-a"], clients=[CLIENT])
    async with contextlib.AsyncExitStack() as stack:
        inner = await stack.enter_async_context(server_with_users(tmp_path / "nats", users))
        server = SecuredServer(inner, users, tmp_path)
        buses = {name: await stack.enter_async_context(server.user(name)) for name in SERVICES}
        record = Client(id=CLIENT, name=CLIENT, scopes=DEFAULT_SCOPES)
        await buses["admin"].append(f"$KV.clients.client.{CLIENT}", encode(record))
        node = await stack.enter_async_context(running_node(NodeConfig(time_scale=100)))
        worker = WorkerSettings(node="node-a", node_url=node.url)
        gateway = GatewaySettings(cluster_secret=SECRET, issuer="http://127.0.0.1:9")  # type: ignore[arg-type]  # pydantic makes it
        for running in (
            await stack.enter_async_context(start_worker(worker, buses["worker-node-a"])),
            await stack.enter_async_context(start_router(RouterSettings(), buses["router"])),
            started := await stack.enter_async_context(start_gateway(gateway, buses["gateway"])),
        ):
            await stack.enter_async_context(working(running))
        await eventually(lambda: not any(started.checks[name]() for name in ("clients", "fleet")), within=10)
        yield server


def program() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


async def run_program(server: SecuredServer, folder: Path, model: str, prompt: str) -> tuple[int, str, str]:
    path = folder / "program.py"
    path.write_text(program(), encoding="utf-8")
    environment = {**os.environ, "NATS_URL": server.url, "NATS_USER": CLIENT, "NATS_NKEY": str(server.seed_file)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(path), model, prompt,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def model_of(server: SecuredServer) -> str:
    """A chat model that the gateway knows, found out as a client would: by asking for one that does not exist."""
    fault: dict[str, Any] = {}

    async def known() -> bool:
        nonlocal fault
        fault = (await ask(server, "submit", {"job": {"model": "no-such", "prompt": "x"}})).get("fault", {})
        return fault.get("code") == "model_not_found"

    await eventually(known, within=10)
    return str(next(name for name in fault["details"]["models"] if "embed" not in name))


async def ask(server: SecuredServer, verb: str, payload: Any) -> dict[str, Any]:
    nc = await nats_py.connect(server.url, nkeys_seed=str(server.seed_file), inbox_prefix=f"_INBOX.{CLIENT}".encode())
    try:
        return dict(
            json.loads((await nc.request(f"api.{CLIENT}.{verb}", json.dumps(payload).encode(), timeout=5)).data)
        )
    finally:
        await nc.close()


async def test_the_program_in_the_documentation_shows_the_tokens_and_takes_the_result(
    fleet: SecuredServer, tmp_path: Path
) -> None:
    """Submit, live tokens in order by offset, the end, the result: with nothing but the permissions of a client."""
    model = await model_of(fleet)
    code, out, err = await run_program(fleet, tmp_path, model, "Tell me about llamas. [[tokens=40]]")

    assert code == 0, err
    assert "ended: succeeded" in err, "seen live, not only asked for"
    shown, _, last = out.rstrip("\n").rpartition('{"state"')
    final = json.loads('{"state"' + last)
    assert final["state"] == "succeeded"
    assert shown == final["result"]["message"]["content"], "every token once and in order"
    assert shown.strip()


# -- over an epoch: the program's own function, against what a gateway and the workers would say ------------------------------


def function(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """One of the program's functions, and the names it sees."""
    monkeypatch.setenv("NATS_USER", CLIENT)
    names: dict[str, Any] = {}
    exec(compile(program().rpartition("asyncio.run(")[0], str(PAGE), "exec"), names)  # our own page
    return names[name], names


ONE, TWO, THREE = b'{"text":"one "}\n', b'{"text":"two "}\n', b'{"text":"three"}\n'
END = b'{"end":{"state":"succeeded"}}\n'
BASE = len(ONE)


@pytest.mark.parametrize(
    ("first", "views", "second", "texts"),
    [
        ([(0, ONE)], [(9, BASE)], [(9, BASE, TWO), (9, BASE + len(TWO), END)], ["one ", "two ", "end"]),
        # the piece of an event that was not whole is void
        ([(0, ONE + TWO[:5])], [(9, BASE)], [(9, BASE, THREE + END)], ["one ", "three", "end"]),
        # an answer older than the chunk is asked for again
        ([(0, ONE)], [(5, None), (9, BASE)], [(9, BASE, TWO + END)], ["one ", "two ", "end"]),
        # a chunk older than the answer is void
        ([(0, ONE)], [(11, BASE), (11, BASE)], [(9, BASE, TWO), (11, BASE, THREE + END)], ["one ", "three", "end"]),
        # more was seen than the next attempt begins with
        ([(0, ONE + TWO)], [(9, BASE)], [(9, BASE, THREE + END)], ["one ", "two "]),
        ([(0, ONE)], [(9, None)], [(9, BASE, TWO + END)], ["one "]),
        # less was seen: what lies between comes by no chunk
        ([(0, ONE)], [(9, BASE + len(TWO))], [(9, BASE + len(TWO), THREE + END)], ["one "]),
    ],
)
async def test_the_program_goes_on_over_an_epoch_by_the_rule_and_stops_where_it_does_not_hold(
    first: list[tuple[int, bytes]],
    views: list[tuple[int, int | None]],
    second: list[tuple[int, int, bytes]],
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live, names = function("live", monkeypatch)
    chunks: asyncio.Queue[Any] = asyncio.Queue()
    said = [(5, *chunk) for chunk in first] + second
    for epoch, offset, data in said:
        chunks.put_nowait(Said(f"out.node.{CLIENT}.job_1.{epoch}.c", b"%d|%b" % (offset, data)))
    answers = [{"epoch": 5, "lineage": [], "finished_at": None}]
    answers += [{"epoch": at, "lineage": [{"epoch": 5, "base": base}], "finished_at": None} for at, base in views]

    async def call(nc: Any, verb: str, **payload: Any) -> Any:
        assert (verb, payload) == ("get", {"id": "job_1"})
        return answers.pop(0)

    names["call"] = call
    seen = [event.get("text", "end") async for event in live(None, chunks, "job_1")]
    assert seen == texts


class Said(NamedTuple):
    subject: str
    data: bytes


async def test_the_program_says_what_a_gateway_refuses(fleet: SecuredServer, tmp_path: Path) -> None:
    await model_of(fleet)
    code, _, err = await run_program(fleet, tmp_path, "gpt-9", "x")
    assert code != 0
    assert "model_not_found" in err


async def test_a_client_of_nats_can_do_nothing_but_ask_as_itself_and_hear_of_its_own_jobs(fleet: SecuredServer) -> None:
    """What the page promises of the permissions is what the server does."""
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error).lower())

    nc = await nats_py.connect(
        fleet.url, nkeys_seed=str(fleet.seed_file), inbox_prefix=f"_INBOX.{CLIENT}".encode(), error_cb=note
    )
    try:
        for subject in (
            "api.other.list",
            "jobs.billing.job_x.new",
            "ctl.router.free",
            "$KV.clients.client.other",
            "evt.other.x",
        ):
            await nc.publish(subject, b"{}")
            await eventually(lambda subject=subject: any(subject.lower() in error for error in refused))
        for subject in ("jobs.>", "out.>", "_INBOX.>", "$KV.clients.>", "api.*.submit"):
            await nc.subscribe(subject)
            await eventually(lambda subject=subject: any(f'"{subject.lower()}"' in error for error in refused))
    finally:
        await nc.close()


def test_the_page_shows_the_permissions_that_arriero_makes() -> None:
    user = permissions(client_user(CLIENT))
    text = PAGE.read_text(encoding="utf-8")
    assert user.publish is not None
    assert user.subscribe is not None
    for subject in (*user.publish, *user.subscribe):
        assert f'"{subject}"' in text


def test_every_verb_is_in_the_table_with_its_scope() -> None:
    rows = dict(
        re.findall(r"^\| `api\.<client>\.(\w+)` .*\| `([\w:]+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert rows == {verb: str(scope) for verb, scope in SCOPES.items()}
