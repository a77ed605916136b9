"""A gateway that is killed in the middle of a delivery: another one goes on with the same event."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest
from standardwebhooks.webhooks import Webhook as Verifier

from libs.common.bus.connection import Bus
from tests.gateway.conftest import Keys
from tests.gateway.running import MODEL, SECRET, RouterStub, add_node, running_gateway
from tests.gateway.webhooks.receiver import receiving
from tests.gateway.webhooks.test_delivery import OWN, emptied, register, submit, succeed
from tests.support.http import free_socket
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually


async def process(nats: NatsServer, port: int, log: Path) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "ARRIERO_GATEWAY_NATS_URL": nats.url,
        "ARRIERO_GATEWAY_PORT": str(port),
        "ARRIERO_GATEWAY_CLUSTER_SECRET": SECRET,
        "ARRIERO_GATEWAY_ISSUER": "http://127.0.0.1:9",
        "ARRIERO_GATEWAY_WEBHOOK_NETWORKS": OWN["webhook_networks"],
    }
    with log.open("wb") as out:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.gateway", env={k: str(v) for k, v in environment.items()}, stdout=out, stderr=out
        )  # fmt: skip


@pytest.mark.parametrize("delivering", [True, False], ids=["delivering", "waiting"])
async def test_what_a_killed_gateway_held_another_one_delivers(
    nats: NatsServer, bus: Bus, keys: Keys, router: RouterStub, tmp_path: Path, delivering: bool
) -> None:
    """Killed while the receiver does not answer; or before the job ends, whose hint then nobody hears."""
    await add_node(bus, MODEL)
    bound = free_socket()
    port = bound.getsockname()[1]
    bound.close()
    killed = await process(nats, port, tmp_path / "gateway.out")
    try:
        async with (
            receiving() as receiver,
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": keys.alice}, timeout=30
            ) as alice,
        ):

            async def up() -> bool:
                try:
                    return (await alice.get("/v1/models")).status_code == 200
                except httpx.HTTPError:
                    return False

            await eventually(up, within=60, every=0.1)
            receiver.go.clear()
            webhook = await register(alice, receiver.url, include_result=True)
            job = await submit(alice, webhook)
            if delivering:
                await succeed(bus, job, "x")
                await eventually(lambda: receiver.got, within=60)
            else:

                async def looked_at() -> bool:
                    info = (await bus.api("CONSUMER.INFO.HOOKS.waiting"))["num_ack_pending"]
                    return bool(info)

                await eventually(looked_at, within=60)
            killed.send_signal(signal.SIGKILL)
            await killed.wait()
            if not delivering:
                await succeed(bus, job, "x")
            receiver.go.set()
            async with running_gateway(nats, **OWN):
                await eventually(lambda: emptied(bus), within=90, every=0.1)
            assert len(receiver.got) == (2 if delivering else 1)
            assert len({(got.headers["webhook-id"], got.body) for got in receiver.got}) == 1
            Verifier(webhook["secret"]).verify(receiver.got[-1].body, receiver.got[-1].headers)
    finally:
        if killed.returncode is None:
            killed.kill()
            await killed.wait()
