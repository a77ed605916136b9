"""`arriero nats init`: streams are made and compared, and with --secrets what each user may do, too."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from libs.cli import nats_users
from libs.cli.failures import CommandFailed
from libs.cli.nats import _seeds
from libs.common.contracts.streams import STREAMS
from tests.support.nats_server import NatsServer, nats_server
from tests.support.nats_users import Users


def keep(users: Users, folder: Path) -> Path:
    folder.mkdir()
    for name, user in users.by_name.items():
        (folder / f"{nats_users.file_name(user)}.nk").write_text(users.seeds[name] + "\n")
    return folder


async def init(server: NatsServer, secrets: Path, *words: str, code: int = 0) -> Any:
    environment = {
        **os.environ,
        "ARRIERO_NATS_URL": server.url,
        "ARRIERO_NATS_NKEY_FILE": str(secrets / "nats-admin.nk"),
    }
    command = [sys.executable, "-m", "libs.cli", "nats", "init", "--json", *words]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    assert process.returncode == code, said
    return json.loads(said)


async def test_what_is_missing_is_made_and_what_a_user_lacks_or_has_too_much_is_said(tmp_path: Path) -> None:
    users = Users(nodes=["n1"], clients=["billing"])
    secrets = keep(users, tmp_path / "secrets")
    config = users.config.replace('"jobs.*.*.new", ', "").replace('"ctl.*.*.run", ', '"ctl.*.*.>", ')
    assert config != users.config
    async with nats_server(tmp_path / "nats", provision=False, config=config) as server:
        assert await init(server, secrets) == {"created": [stream.name for stream in STREAMS], "differences": []}
        said = await init(server, secrets, "--check", "--secrets", str(secrets), code=1)

    assert said["error"]["code"] == "streams_differ"
    assert "user gateway may not publish jobs.*.*.new" in json.dumps(said)
    assert "user router may publish ctl.*.*.>, which it need not" in json.dumps(said)


async def test_users_who_may_what_they_need_are_no_difference(tmp_path: Path) -> None:
    users = Users(nodes=["n1"], clients=["billing"])
    secrets = keep(users, tmp_path / "secrets")
    async with nats_server(tmp_path / "nats", provision=False, config=users.config) as server:
        await init(server, secrets)
        assert await init(server, secrets, "--check", "--secrets", str(secrets)) == {"created": [], "differences": []}


def test_who_is_asked_are_services_and_workers_that_stand_in_the_configuration(tmp_path: Path) -> None:
    users = Users(nodes=["n1", "gone"], clients=["billing"])
    secrets = keep(users, tmp_path / "secrets")
    conf = tmp_path / "users.conf"
    conf.write_text(Users(nodes=["n1"], clients=["billing"]).config)
    assert _seeds(str(secrets), conf) == {}, "none of those stands there"
    conf.write_text("\n".join(line for line in users.config.splitlines() if line.startswith("        nkey")))
    everybody = {user.name for user in _seeds(str(secrets), conf)}
    assert everybody == {"auth", "gateway", "router", "worker-n1", "worker-gone"}
    gone = users.config.split("# worker-gone")[1].split("nkey: ")[1].split()[0]
    conf.write_text(conf.read_text().replace(gone, ""))
    assert {user.name for user in _seeds(str(secrets), conf)} == everybody - {"worker-gone"}


def test_a_folder_without_keys_is_a_mistake_and_no_agreement(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="holds no keys"):
        _seeds(str(tmp_path), None)
