"""A client's NATS user over its whole life, beside a running `arriero up`."""

import asyncio
import json
import stat
from pathlib import Path

import httpx
import nats as nats_py
import pytest

from libs.client import Arriero
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away
from tests.support.stack import Stack, running_stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e


async def test_a_client_with_a_nats_user_is_let_in_taken_out_put_back_and_gone(stack: Stack) -> None:
    others = {name: int(pid) for name, pid in stack.up["pids"].items()}
    made = json.loads(stack.arriero("client", "create", "carrier", "--nats", "--json").stdout)
    seed = _secret(Path(made["nats_seed_file"]))
    shown = json.loads(stack.arriero("client", "show", "carrier", "--json").stdout)
    assert shown["nats"] == made["nats"] != ""

    async with Arriero.connect(stack.up["nats"], client="carrier", nkey_seed=seed) as arriero:
        job = await arriero.submit(model="llama3.2:3b", prompt="Why do llamas hum? [[tokens=3]]")
        assert await job.result(timeout=60)
        for other in ("demo", "carrie"):
            with pytest.raises(ValueError, match="permissions violation"):
                await _say(stack, seed, f"api.{other}.list")

    bus = Bus("carrier")
    await bus.open([stack.up["nats"]], nkey_seed=seed, first="")
    disabled = stack.arriero("client", "disable", "carrier")
    assert (disabled.returncode, "NATS has ended its connections" in disabled.stdout) == (0, True), disabled.stderr
    await eventually(lambda: not bus.connected)
    assert not await _let_in(stack, seed)

    assert stack.arriero("client", "enable", "carrier").returncode == 0
    await eventually(lambda: bus.connected)
    await bus.close()
    assert stack.arriero("client", "delete", "carrier").returncode == 0
    assert not await _let_in(stack, seed)
    assert not list((stack.home / "secrets").glob("*carrier*"))
    assert {name: int(pid) for name, pid in stack.up["pids"].items()} == others, "nobody was started again"


async def _let_in(stack: Stack, seed: str) -> bool:
    """What NATS says of it, once it says anything: a server that has just read its users anew may take a moment."""
    for _ in range(10):
        bus = Bus("carrier")
        try:
            await bus.open([stack.up["nats"]], nkey_seed=seed, first="", within=2)
        except Away as error:
            if "authorization violation" in str(error).lower():
                return False
            why = error
        else:
            return True
        finally:
            await bus.close()
    raise AssertionError(f"NATS said neither yes nor no: {why}")


def _secret(path: Path) -> str:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return path.read_text().strip()


async def _say(stack: Stack, seed: str, subject: str) -> None:
    """Raises ValueError with what NATS has against it."""
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def note(error: Exception) -> None:
        if not heard.done():
            heard.set_result(str(error))

    connection = await nats_py.connect(stack.up["nats"], nkeys_seed_str=seed, error_cb=note)
    try:
        await connection.publish(subject, b"{}")
        raise ValueError(await asyncio.wait_for(heard, 20))
    finally:
        await connection.close()


def test_every_user_of_a_running_stack_has_what_the_table_says(stack: Stack) -> None:
    checked = stack.arriero("nats", "init", "--check")
    assert (checked.returncode, checked.stderr) == (0, "")
    conf = stack.home / "nats" / "users.conf"
    assert len(json.loads(stack.arriero("nats", "init", "--check", "--json").stdout)["differences"]) == 0
    assert "worker-" in conf.read_text()


def test_others_go_on_while_a_client_comes_and_goes(tmp_path: Path) -> None:
    """A reload of NATS's users is felt by nobody who stays: no reconnect in any log, and a stream that runs on."""
    with running_stack(tmp_path, "--no-demo") as stack:
        body = {"model": "llama3.2:3b", "prompt": "Tell me. [[tokens=400]]"}
        headers = {"Authorization": f"Bearer {stack.up['api_key']}"}
        job = httpx.post(f"{stack.up['gateway']}/jobs", json=body, headers=headers, timeout=30).json()["id"]
        assert stack.arriero("client", "create", "passing", "--nats").returncode == 0
        assert stack.arriero("client", "delete", "passing").returncode == 0
        view = httpx.get(f"{stack.up['gateway']}/jobs/{job}?wait=60", headers=headers, timeout=90).json()
        assert (view["state"], view["attempts"]) == ("succeeded", 1)
        logs = {path.name: path.read_text() for path in (stack.home / "logs").glob("*.log")}
        assert not [name for name, text in logs.items() if "bus.reconnected" in text or "bus.disconnected" in text]
