"""What `arriero up` writes for its nats-server: a real one takes it, and each user is who it should be."""

import asyncio
import contextlib
import json
import shlex
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from libs.cli.home import Home
from libs.cli.up import probe, stack
from libs.cli.up.nats_config import MAX_PAYLOAD, environment_file, sourcing
from libs.cli.up.ollama import Fleet, Node
from libs.cli.up.ports import Ports
from libs.common.bus.connection import Bus
from libs.common.bus.provision import create_missing
from libs.common.contracts.streams import STREAMS
from tests.support.nats_server import binary, nats_server
from tests.support.waiting import eventually

# nats-server picks free ones and writes them into a file: chosen here, somebody else could take them meanwhile.
PORTS = Ports(gateways=(1,), auth=2, nats=-1, monitor=-1, ops={}, sims={})
FLEET = Fleet(nodes=(Node(name="a", slots=1, url="http://a"),))


def test_the_environment_file_can_be_sourced() -> None:
    text = environment_file(url="nats://127.0.0.1:8702", client="demo", seed_file=Path("/a home/nats-client-demo.nk"))

    assert [shlex.split(line)[0] for line in text.splitlines()] == [
        "NATS_URL=nats://127.0.0.1:8702",
        "NATS_USER=demo",
        "NATS_NKEY=/a home/nats-client-demo.nk",
    ]


def test_programs_started_from_a_shell_that_sourced_it_see_it(tmp_path: Path) -> None:
    file = tmp_path / "a home.env"
    file.write_text(environment_file(url="nats://127.0.0.1:8702", client="demo", seed_file=Path("/a home/demo.nk")))
    told = subprocess.run(["sh", "-c", f"{sourcing(file)}; env"], env={}, capture_output=True, text=True, check=True)

    assert {"NATS_URL=nats://127.0.0.1:8702", "NATS_USER=demo", "NATS_NKEY=/a home/demo.nk"} <= {
        *told.stdout.splitlines()
    }


async def test_a_real_server_takes_it_and_knows_every_user(tmp_path: Path) -> None:
    home = Home(tmp_path / 'a "quoted" home')
    home.open()
    stack.write_nats_config(home, PORTS, FLEET, "demo")
    kept = {path.name: path.read_text() for path in home.secrets.iterdir()}
    stack.write_nats_config(home, PORTS, FLEET, "demo")
    assert {path.name: path.read_text() for path in home.secrets.iterdir()} == kept, "a second start changes no key"
    written = (home.nats / "users.conf").read_text() + (home.nats / "server.conf").read_text()
    for name, secret in kept.items():
        assert secret.strip() not in written, f"{name} stands in the configuration"
        assert (home.secrets / name).stat().st_mode & 0o077 == 0
    async with _started(home) as url:
        for name in ("admin", "auth", "gateway", "router", "worker-a", "client-demo"):
            bus = Bus(name.removeprefix("client-"))
            seed = (home.secrets / f"nats-{name}.nk").read_text().strip()
            # A client may not ask what a service asks first.
            first = {"first": ""} if name == "client-demo" else {}
            await bus.open([url], nkey_seed=seed, **first)
            await bus.close()
        assert (home.nats / "store").is_dir()


async def test_what_an_earlier_version_stored_is_there_again(tmp_path: Path) -> None:
    """Its users had no account, so nats-server kept the streams in its nameless one."""
    home = Home(tmp_path / "home")
    home.open()
    async with nats_server(tmp_path / "earlier") as server:
        bus = Bus("")
        await bus.open([server.url])
        await bus.append("jobs.demo.job_1.new", b"a request")
        await bus.close()
        await server.stop()
    (tmp_path / "earlier" / "store").rename(home.nats / "store")
    for name in ("cluster", "operator"):
        home.write(home.secret_file(name), "x" * 43)
    stack.write_nats_config(home, PORTS, FLEET, "demo")
    async with _started(home) as url:
        admin = Bus("admin")
        await admin.open([url], nkey_seed=(home.secrets / "nats-admin.nk").read_text().strip())
        assert await create_missing(admin) == []
        stored = await admin.last("JOBS", "jobs.demo.job_1.new")
        assert stored is not None
        assert stored.data == b"a request"
        await admin.close()


def test_a_whole_record_of_the_largest_size_fits_into_a_message() -> None:
    assert STREAMS[0].config(replicas=1, max_bytes=1)["max_msg_size"] < MAX_PAYLOAD


@contextlib.asynccontextmanager
async def _started(home: Home) -> AsyncIterator[str]:
    """Its URL."""
    folder = home.path / "ports"
    folder.mkdir()
    config = str(home.nats / "server.conf")
    process = await asyncio.create_subprocess_exec(
        binary(), "-c", config, "--ports_file_dir", str(folder), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        told: dict[str, list[str]] = await eventually(lambda: _told(folder))
        await eventually(lambda: _healthy(told["monitoring"][0]))
        yield told["nats"][0]
    finally:
        process.kill()
        await process.wait()


def _told(folder: Path) -> dict[str, list[str]] | None:
    return next((json.loads(text) for file in folder.glob("*.ports") if (text := file.read_text().strip())), None)


async def _healthy(monitor: str) -> bool:
    answer = await probe.get(f"{monitor}/healthz")
    return answer is not None and answer[0] == 200
