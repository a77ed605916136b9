"""The example in deploy/nginx: nginx takes it, and behind it requests have the right client, host and id, and no token waits."""

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from libs.common.edge import Edge, Rules
from libs.common.edge.addresses import networks
from libs.common.edge.hosts import hosts
from libs.common.runtime import Port
from tests.edge.raw import PATIENT, App
from tests.support.http import free_socket, served
from tests.support.waiting import eventually

EXAMPLE = Path(__file__).parents[2] / "deploy" / "nginx" / "arriero.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write(folder: Path, *, gateway: str = "127.0.0.1:8700", port: int = 0) -> list[str]:
    """The example with this test's ports and certificate, and a configuration around it; the command."""
    assert NGINX
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=llm.example.org", "-keyout", folder / "privkey.pem", "-out", folder / "fullchain.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    example = EXAMPLE.read_text().replace("/etc/arriero/tls", str(folder)).replace("127.0.0.1:8700", gateway)
    if port:
        kept = [line for line in example.splitlines() if "listen [::]" not in line]
        example = "\n".join(kept).replace("listen 443", f"listen 127.0.0.1:{port}")
        example = example.partition("server {\n    listen 80;")[0]
    (folder / "arriero.conf").write_text(example)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"pid {folder}/pid; error_log {folder}/error.log; daemon off; worker_processes 1; events {{}}\n"
        f"http {{ access_log off; {temporary} include {folder}/arriero.conf; }}\n"
    )
    return [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


def test_nginx_takes_the_example(tmp_path: Path) -> None:
    checked = subprocess.run([*_write(tmp_path), "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr


@contextlib.asynccontextmanager
async def _behind_nginx(folder: Path, app: App) -> AsyncIterator[httpx.AsyncClient]:
    rules = Rules("ARRIERO_GATEWAY_", hosts(["llm.example.org"]), proxies=networks(["127.0.0.1"]))
    async with served(Port(app, "127.0.0.1", 0, Edge(PATIENT, rules)), free_socket()) as url:
        port = _free_port()
        running = await asyncio.create_subprocess_exec(*_write(folder, gateway=url.removeprefix("http://"), port=port))
        try:
            trusting = ssl.create_default_context(cafile=str(folder / "fullchain.pem"))
            trusting.check_hostname = False
            async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=trusting, timeout=20) as client:
                await eventually(lambda: _listens(port))
                yield client
        finally:
            running.terminate()
            await running.wait()


async def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False


async def test_behind_it_client_host_and_id_are_the_right_ones(tmp_path: Path) -> None:
    app = App()
    async with _behind_nginx(tmp_path, app) as client:
        forged = {"Host": "llm.example.org", "X-Forwarded-For": "6.6.6.6", "X-Request-Id": "<script>"}
        answer = await client.get("/jobs", headers=forged)
        assert answer.status_code == 200
        assert "max-age" in answer.headers["strict-transport-security"]
        assert len(answer.headers["x-request-id"]) == 32
        (scope,) = app.scopes
        assert scope["state"]["request_id"] == answer.headers["x-request-id"]
        # The client is on this machine, and so one of "our proxies": the hop before is what is left.
        assert scope["state"]["address"] == "6.6.6.6"
        refused = await client.get("/jobs", headers={"Host": "evil.example"})
        assert (refused.status_code, json.loads(refused.content)["code"]) == (421, "misdirected")
