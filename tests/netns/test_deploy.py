"""The files of deploy/ are read by what they are for: systemd, nats-server, the services. Needs neither root nor namespaces."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from libs.common.bus.nkeys import new_seed
from libs.common.settings import ServiceSettings
from services.auth.settings import AuthSettings
from services.gateway.settings import GatewaySettings
from services.router.settings import RouterSettings
from services.worker.settings import WorkerSettings
from tests.netns.world import DEPLOY, inherited, make_users
from tests.support.certificates import Authority
from tests.support.nats_server import binary
from tests.support.waiting import until

CLASSES: dict[str, type[ServiceSettings]] = {
    "auth": AuthSettings, "gateway": GatewaySettings, "router": RouterSettings, "worker": WorkerSettings,
}  # fmt: skip
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def run(*command: str | Path, within: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=within, env=inherited() | environment)


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
    given = {
        name.removesuffix("_FILE"): _secret(name) if name.endswith("_FILE") else value for name, value in plain.items()
    }
    checked = run(sys.executable, "-m", f"services.{kind}", "--check", **given)
    assert checked.returncode == 0, checked.stderr
    (unit,) = (unit for unit in UNITS if f"/arriero-{kind}\n" in unit.read_text())
    assert re.search(rf"^EnvironmentFile=/etc/arriero/{kind}(-%i)?\.env$", unit.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["server.conf", "cluster.conf"])
def test_nats_server_takes_them_with_tls(tmp_path: Path, name: str) -> None:
    """Every line that begins with `#tls`, in the place where it stands: clients with certificates of their own, and routes."""
    make_users(tmp_path, nodes=["gpu-1"], servers=["n1.internal", "n2.internal"])
    authority = Authority(tmp_path, "ca")
    for certificate in ("hub", "nats"):
        authority.signed(certificate)
    text = (DEPLOY / "nats" / name).read_text()
    wanted = 1 if name == "server.conf" else 2
    encrypted, changed = re.subn(r"^( *)#tls ", r"\1tls ", text, flags=re.MULTILINE)
    assert changed == wanted
    (tmp_path / name).write_text(encrypted.replace("/etc/arriero/tls", str(tmp_path)))
    checked = run(binary(), "-t", "-c", tmp_path / name)
    assert checked.returncode == 0, checked.stderr


def _secret(name: str) -> str:
    return new_seed() if name.endswith("_NKEY_FILE") else "x" * 32


@pytest.mark.parametrize("name", ["server.conf", "cluster.conf"])
def test_nats_server_takes_the_configurations(tmp_path: Path, name: str) -> None:
    make_users(tmp_path, nodes=["gpu-1"], clients=["billing"], servers=["n1.internal", "n2.internal"])
    shutil.copy(DEPLOY / "nats" / name, tmp_path)
    checked = run(binary(), "-t", "-c", tmp_path / name)
    assert checked.returncode == 0, checked.stderr


def test_tls_to_nats_trusts_the_authority_that_ssl_cert_file_names_and_no_other(tmp_path: Path) -> None:
    """What docs/multi-node.md says of `tls://`."""
    authority = Authority(tmp_path)
    ca, (pem, key) = authority.file, authority.signed("hub")
    ports = tmp_path / "ports"
    ports.mkdir()
    config = tmp_path / "server.conf"
    config.write_text(
        f'listen: "127.0.0.1:-1"\njetstream {{ store_dir: "{tmp_path}/store" }}\n'
        f'tls {{ cert_file: "{pem}", key_file: "{key}", min_version: "1.3" }}\n'
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
            other = run(*command, "--check", SSL_CERT_FILE=os.devnull)
            assert other.returncode == 1
            assert "certificate is not trusted by this machine's authorities" in other.stderr
        finally:
            server.kill()
