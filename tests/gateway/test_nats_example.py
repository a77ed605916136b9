"""The program of docs/nats.md, as it stands there, against a real nats-server with the users that `arriero up` makes."""

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
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
from tests.gateway.whole import working
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
        checks = [started.checks[name] for name in ("clients", "revocations", "fleet")]
        await eventually(lambda: not any(check() for check in checks))
        yield server


def program(uses: str = "import nats\n") -> str:
    """The one of the page's programs that holds this line."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if uses in block]
    return str(found)


def login(server: SecuredServer) -> dict[str, str]:
    return {**os.environ, "NATS_URL": server.url, "NATS_USER": CLIENT, "NATS_NKEY": str(server.seed_file)}


async def run_program(
    server: SecuredServer, folder: Path, model: str, prompt: str, text: str | None = None
) -> tuple[int, str, str]:
    path = folder / "program.py"
    path.write_text(text or program(), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(path), model, prompt,
        env=login(server) | {"PYTHONPATH": str(PAGE.parents[1])}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
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

    await eventually(known)
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


class Said(NamedTuple):
    subject: str
    data: bytes


def piece(epoch: int, offset: int | None, log: bytes = b"", state: str = "running") -> dict[str, Any]:
    """What `read` answers; fields that hold nothing are not there."""
    found: dict[str, Any] = {"state": state, "epoch": epoch}
    if offset is not None:
        found["offset"] = offset
    return found | ({"log": base64.b64encode(log).decode()} if log else {})


QUEUED = piece(0, None, state="queued")


@pytest.mark.parametrize(
    ("said", "answers", "texts"),
    [
        # from the beginning
        ([(5, 0, ONE), (5, BASE, TWO + END)], [((0, 0), QUEUED)], ["one ", "two ", "end"]),
        # late: what was said, then what is said, some of it twice
        ([(5, 0, ONE), (5, 3, ONE[3:] + END)], [((0, 0), piece(5, 0, ONE)), ((5, BASE), piece(5, BASE))], ["one ", "end"]),
        # a lost chunk, and one inside an event
        (
            [(5, 0, ONE), (5, BASE * 2, END), (5, BASE * 2, END)],
            [((0, 0), QUEUED), ((5, BASE), piece(5, BASE, TWO[:4])), ((5, BASE + 4), piece(5, BASE + 4, TWO[4:])),
             ((5, 2 * BASE), piece(5, 2 * BASE))],
            ["one ", "two ", "end"],
        ),
        # another attempt that begins with what was shown; its log goes on otherwise
        (
            [(5, 0, ONE + TWO[:4]), (9, BASE, THREE), (9, BASE + len(THREE), END)],
            [((0, 0), QUEUED), ((5, BASE + 4), piece(9, None)), ((5, BASE), piece(9, BASE, THREE)),
             ((9, BASE + len(THREE)), piece(9, BASE + len(THREE)))],
            ["one ", "three", "end"],
        ),
        # an answer that is older than the chunk, and a chunk that is older than the answer
        (
            [(5, 0, ONE), (9, BASE, TWO), (9, BASE, TWO), (5, BASE, THREE), (11, BASE, THREE), (11, BASE, THREE + END)],
            [((0, 0), QUEUED), ((5, BASE), piece(4, None)), ((5, BASE), piece(9, BASE, TWO)), ((9, 2 * BASE), piece(9, 2 * BASE)),
             ((9, 2 * BASE), piece(11, 2 * BASE, END))],
            ["one ", "two ", "end"],
        ),
        # nobody runs it at the moment
        (
            [(5, 0, ONE), (9, BASE, TWO), (9, BASE, TWO)],
            [((0, 0), QUEUED), ((5, BASE), piece(7, None, state="queued")), ((5, BASE), piece(9, BASE, TWO + END))],
            ["one ", "two ", "end"],
        ),
        # more was shown than the next attempt begins with
        ([(5, 0, ONE + TWO), (9, BASE, THREE)], [((0, 0), QUEUED), ((5, 2 * BASE), piece(9, None))], ["one ", "two ", "void"]),
    ],
)  # fmt: skip
async def test_the_program_fills_gaps_and_goes_on_over_an_epoch_by_the_rule(
    said: list[tuple[int, int, bytes]],
    answers: list[tuple[tuple[int, int], dict[str, Any]]],
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live, names = function("live", monkeypatch)
    chunks: asyncio.Queue[Any] = asyncio.Queue()
    for epoch, offset, data in said:
        chunks.put_nowait(Said(f"out.node.{CLIENT}.job_1.{epoch}.c", b"%d|%b" % (offset, data)))

    async def call(nc: Any, verb: str, **payload: Any) -> Any:
        expected, answer = answers.pop(0)
        assert (verb, payload) == ("read", {"id": "job_1", "epoch": expected[0], "offset": expected[1]})
        return answer

    names["call"] = call
    seen: list[str] = []

    async def read() -> None:
        async for event in live(None, chunks, "job_1"):
            seen.append(event.get("text", "end"))

    if texts[-1] == "void":
        with pytest.raises(RuntimeError, match="void"):
            await read()
        texts = texts[:-1]
    else:
        await read()
    assert seen == texts
    assert answers == []


async def test_the_program_with_the_library_shows_the_tokens_and_counts_them(
    fleet: SecuredServer, tmp_path: Path
) -> None:
    model, text = await model_of(fleet), program("from libs.client")
    code, out, err = await run_program(fleet, tmp_path, model, "Tell me about llamas. [[tokens=40]]", text)
    assert code == 0, err
    assert len(out.split()) > 30
    assert "tokens: 41" in err
    code, out, err = await run_program(fleet, tmp_path, model, "another question", text)
    assert (code, out) == (1, "")
    assert err.startswith("idempotency_mismatch: ")


@pytest.mark.skipif(shutil.which("nats") is None, reason="the nats command is not installed")
async def test_the_lines_with_the_nats_command_work(fleet: SecuredServer, tmp_path: Path) -> None:
    (lines,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    bash = shutil.which("bash")
    assert bash
    script = "set -euo pipefail\n" + lines.replace("llama3.2:3b", await model_of(fleet))
    process = await asyncio.create_subprocess_exec(
        bash, "-c", script, env=login(fleet) | {"HOME": str(tmp_path)}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(60):
        said = (await process.communicate())[0].decode()
    assert '"state":"succeeded"' in said, said
    assert '{"end":{"state":"succeeded"' in said, said
    assert '"jobs":[{"id":"job_' in said, said
    assert '"erased":true' in said, said
    assert re.search(r"^0\|\{", said, re.MULTILINE), said


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
