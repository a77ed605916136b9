"""The embedded server's configuration: a real nats-server takes it, and holds clients to their own subjects."""

import asyncio
import socket
from pathlib import Path

import nats.errors
import pytest
from nats.aio.client import Client

from libs.cli.up import probe
from libs.cli.up.nats_config import MAX_PAYLOAD, client_user, environment_file, render, service_users
from libs.common.bus.connection import Bus, Message
from libs.common.contracts.streams import STREAMS
from tests.support.nats_server import binary
from tests.support.waiting import eventually


def test_every_worker_has_a_user_of_its_own():
    names = [user.name for user in service_users(("a", "b"))]

    assert names == ["admin", "auth", "gateway", "router", "worker-a", "worker-b"]


def test_a_client_may_only_touch_its_own_subjects():
    user = client_user("demo")

    assert user.publish == ("api.demo.>",)
    assert user.subscribe == ("_INBOX.demo.>", "out.*.demo.>", "evt.demo.>")


def test_the_environment_file_can_be_sourced():
    text = environment_file(url="nats://127.0.0.1:8702", client="demo", password="abc-_9")

    assert text.splitlines() == ["NATS_URL=nats://127.0.0.1:8702", "NATS_USER=demo", "NATS_PASSWORD=abc-_9"]


async def test_a_real_server_enforces_it(tmp_path: Path):
    port, monitor = _free_port(), _free_port()
    store = tmp_path / 'a "quoted" store'
    users = [(user, f"password-of-{user.name}") for user in (*service_users(("a",)), client_user("demo"))]
    config = tmp_path / "server.conf"
    config.write_text(
        render(host="127.0.0.1", port=port, monitor=monitor, store=store, max_file_store=1 << 30, users=users)
    )
    server = await asyncio.create_subprocess_exec(binary(), "-c", str(config), stderr=asyncio.subprocess.DEVNULL)
    try:
        await eventually(lambda: _healthy(monitor))
        gateway, demo, stranger = Bus("gateway"), Client(), Client()
        url = f"nats://127.0.0.1:{port}"
        await gateway.open([url], password="password-of-gateway")
        with pytest.raises(nats.errors.Error):
            await stranger.connect(
                servers=[url], user="demo", password="wrong", allow_reconnect=False, error_cb=_ignore
            )
        heard: list[Message] = []
        await gateway.subscribe("api.>", heard.append)
        await gateway.subscribe("jobs.>", heard.append)
        await gateway.request("$JS.API.INFO")  # the subscriptions stand once this has come back

        await demo.connect(servers=[url], user="demo", password="password-of-demo", error_cb=_ignore)
        for subject in ("jobs.demo.job_1.new", "api.other.submit", "api.demo.submit"):
            await demo.publish(subject, b"x")

        await eventually(lambda: heard)
        assert [message.subject for message in heard] == ["api.demo.submit"]
        assert store.is_dir()
        await stranger.close()
        await demo.close()
        await gateway.close()
    finally:
        server.kill()
        await server.wait()


def test_a_whole_record_of_the_largest_size_fits_into_a_message():
    assert STREAMS[0].config(replicas=1, max_bytes=1)["max_msg_size"] < MAX_PAYLOAD


async def _ignore(error: Exception) -> None:
    """nats-py would print it."""


async def _healthy(monitor: int) -> bool:
    answer = await probe.get(f"http://127.0.0.1:{monitor}/healthz")
    return answer is not None and answer[0] == 200


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
