"""The files of deploy/ are read by what they are for: systemd, nats-server, the services. Needs neither root nor namespaces."""

import asyncio
import contextlib
import datetime
import ipaddress
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus, Message
from libs.common.bus.failures import BusError
from libs.common.bus.follower import Follower
from libs.common.bus.provision import create_missing
from libs.common.contracts.catalog import model_record
from libs.common.contracts.streams import MODELS
from libs.common.settings import ServiceSettings
from services.auth.settings import AuthSettings
from services.gateway.settings import GatewaySettings
from services.router.settings import RouterSettings
from services.worker.settings import WorkerSettings
from tests.netns.world import DEPLOY, inherited, until
from tests.support.nats_server import binary, connected, nats_server
from tests.support.waiting import eventually

CLASSES: dict[str, type[ServiceSettings]] = {
    "auth": AuthSettings, "gateway": GatewaySettings, "router": RouterSettings, "worker": WorkerSettings,
}  # fmt: skip
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def run(*command: str | Path, within: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=within, env=inherited() | environment)


def make_users(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    return run(DEPLOY / "nats" / "users.sh", folder / "secrets", folder / "users.conf", *names)


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    for unit in UNITS:
        text = unit.read_text().replace("/opt/arriero/.venv", sys.prefix)
        (tmp_path / unit.name).write_text(text)
    checked = run("systemd-analyze", "verify", "--man=no", *(tmp_path / unit.name for unit in UNITS))
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.parametrize("kind", list(CLASSES))
def test_each_service_takes_its_env_file_and_its_unit_names_it(kind: str) -> None:
    text = (DEPLOY / "env" / f"{kind}.env").read_text()
    prefix = f"ARRIERO_{kind.upper()}_"
    names = re.findall(r"^(\w+)=", text, re.MULTILINE)
    known = {prefix + name.upper() for name in CLASSES[kind].model_fields}
    assert {name.removesuffix("_FILE") for name in names} <= known
    plain = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    given = {name.removesuffix("_FILE"): "x" * 32 if name.endswith("_FILE") else value for name, value in plain.items()}
    checked = run(sys.executable, "-m", f"services.{kind}", "--check", **given)
    assert checked.returncode == 0, checked.stderr
    (unit,) = (unit for unit in UNITS if f"/arriero-{kind}\n" in unit.read_text())
    assert re.search(rf"^EnvironmentFile=/etc/arriero/{kind}(-%i)?\.env$", unit.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["server.conf", "cluster.conf"])
def test_nats_server_takes_the_configurations(tmp_path: Path, name: str) -> None:
    assert make_users(tmp_path, "gpu-1", "client:billing", "server:n1.internal", "server:n2.internal").returncode == 0
    shutil.copy(DEPLOY / "nats" / name, tmp_path)
    checked = run(binary(), "-t", "-c", tmp_path / name)
    assert checked.returncode == 0, checked.stderr


def test_users_keep_their_passwords_and_nobody_else_can_read_them(tmp_path: Path) -> None:
    assert make_users(tmp_path, "gpu-1", "client:billing", "server:n1.internal").returncode == 0
    before = (tmp_path / "users.conf").read_text()
    assert (tmp_path / "users.conf").stat().st_mode & 0o077 == 0
    (tmp_path / "users.conf").chmod(0o640)  # for the group that nats-server runs as
    assert make_users(tmp_path, "gpu-2").returncode == 0
    assert (tmp_path / "users.conf").stat().st_mode & 0o777 == 0o640
    after = (tmp_path / "users.conf").read_text()
    users = re.findall(r'user: "(\S+)"', after)
    assert users == ["admin", "auth", "gateway", "router", "worker-gpu-1", "worker-gpu-2", "billing"]
    assert set(re.findall('password: "(.*)"', before)) < set(re.findall('password: "(.*)"', after))
    made = [tmp_path / "route.conf", *(tmp_path / "secrets").iterdir()]
    assert {path.stat().st_mode & 0o077 for path in made} == {0}

    (tmp_path / "secrets" / "nats-worker-gpu-1").unlink()
    assert make_users(tmp_path).returncode == 0
    assert "worker-gpu-1" not in (tmp_path / "users.conf").read_text()


@pytest.mark.parametrize(
    "name", ["a.b", "a b", "", "*", "router", "x" * 65, "client:gateway", "client:a>", "server:a b"]
)
def test_a_name_that_could_widen_what_a_user_may_do_is_refused(tmp_path: Path, name: str) -> None:
    done = make_users(tmp_path, name)
    assert (done.returncode, (tmp_path / "users.conf").exists()) == (2, False)


def test_tls_to_nats_trusts_the_authority_that_ssl_cert_file_names_and_no_other(tmp_path: Path) -> None:
    """What docs/multi-node.md says of `tls://`."""
    ca = certificate(tmp_path)
    ports = tmp_path / "ports"
    ports.mkdir()
    config = tmp_path / "server.conf"
    config.write_text(
        f'listen: "127.0.0.1:-1"\njetstream {{ store_dir: "{tmp_path}/store" }}\n'
        f'tls {{ cert_file: "{tmp_path}/hub.pem", key_file: "{tmp_path}/hub.key", min_version: "1.3" }}\n'
    )
    with subprocess.Popen([binary(), "-c", config, "--ports_file_dir", ports, "-l", tmp_path / "nats.log"]) as server:
        try:
            until(lambda: any(found.read_text().strip() for found in ports.glob("*.ports")), within=10)
            (port,) = set(re.findall(r"127\.0\.0\.1:(\d+)", next(ports.glob("*.ports")).read_text()))
            command = [sys.executable, "-m", "libs.cli", "nats", "init", "--url", f"tls://127.0.0.1:{port}"]
            trusting = run(*command, SSL_CERT_FILE=str(ca))
            assert trusting.returncode == 0, trusting.stderr
            plain = [word.replace("tls://", "nats://") for word in command]
            assert run(*plain, SSL_CERT_FILE=str(ca)).returncode == 0, "a server that asks for TLS gets it"
            with pytest.raises(subprocess.TimeoutExpired):  # it would go on trying for 30 s
                run(*command, "--check", within=4, SSL_CERT_FILE=os.devnull)
        finally:
            server.kill()


def certificate(folder: Path) -> Path:
    """hub.pem and hub.key for 127.0.0.1, signed by ca.pem."""
    now = datetime.datetime.now(datetime.UTC)

    def signed(
        name: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, ca: bool
    ) -> x509.Certificate:
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test CA")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(address, critical=False)
            .sign(by, hashes.SHA256())
        )

    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(signed("test CA", authority, authority, True).public_bytes(pem))
    (folder / "hub.pem").write_bytes(signed("hub", own, authority, False).public_bytes(pem))
    (folder / "hub.key").write_bytes(
        own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "ca.pem"


async def test_gateway_and_router_may_do_what_models_and_nodes_need_and_no_more(tmp_path: Path) -> None:
    assert make_users(tmp_path, "gpu-1").returncode == 0
    users = (tmp_path / "users.conf").read_text()
    passwords = dict(re.findall(r'user: "(\S+)", password: "(\S+)"', users))
    async with nats_server(tmp_path / "nats", provision=False, config=users) as server:
        async with connected(server, "admin", passwords["admin"]) as admin:
            await create_missing(admin)

        def as_user(name: str) -> contextlib.AbstractAsyncContextManager[Bus]:
            return connected(server, name, passwords[name])

        async with as_user("gateway") as gateway, as_user("router") as router, as_user("worker-gpu-1") as worker:
            for subject in ("ctl.gpu-1.b.model", "ctl.gpu-1.b.run"):
                await worker.serve(subject, _yes)
            await router.serve("ctl.router.quote", _yes)
            await worker.api("INFO")
            await router.api("INFO")  # the subscriptions stand once these have come back
            for asker, subject in (
                (gateway, "ctl.gpu-1.b.model"),
                (gateway, "ctl.router.quote"),
                (router, "ctl.gpu-1.b.model"),
            ):
                assert await asker.request(subject) == b"yes"
            with pytest.raises(BusError):
                await gateway.request("ctl.gpu-1.b.run", timeout=0.5)
            key = model_record("hf.co/org/name:Q4_K_M")
            revision = await Bucket(gateway, MODELS).put(key, b"{}", expected=0)
            assert await Bucket(router, MODELS).get(key) == (b"{}", revision)
            for user in (router, worker):
                with pytest.raises(BusError):
                    await user.append(f"$KV.{MODELS}.{key}", b"x", timeout=0.5)
            seen: list[str] = []
            followers = [
                Follower(user, f"KV_{MODELS}", [f"$KV.{MODELS}.>"], lambda stored: seen.append(stored.subject))
                for user in (gateway, router)
            ]
            following = [asyncio.create_task(each.run()) for each in followers]
            await eventually(lambda: len(seen) == 2)
            await Bucket(gateway, MODELS).delete(key, expected=revision)
            await eventually(lambda: len(seen) == 4)
            for task in following:
                task.cancel()


async def _yes(message: Message) -> bytes:
    return b"yes"
