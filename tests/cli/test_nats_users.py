"""`arriero nats users`: keys as files, permissions as nats-server's configuration."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from libs.cli.failures import CommandFailed
from libs.cli.nats_users import render, write
from libs.common.bus.nkeys import new_seed, public_key


def made(folder: Path, **more: list[str]) -> str:
    write(folder / "secrets", folder / "users.conf", **more)
    return (folder / "users.conf").read_text()


def users(text: str) -> dict[str, str]:
    return dict(re.findall(r"\{ # (\S+)\n +nkey: (\S+)", text))


def test_who_has_a_key_keeps_it_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    before = made(tmp_path, nodes=["gpu-1"], clients=["billing"], servers=["n1.internal"])
    conf = tmp_path / "users.conf"
    files = [conf, tmp_path / "route.conf", *(tmp_path / "secrets").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in files} == {0}
    conf.chmod(0o640)  # for the group that nats-server runs as
    after = made(tmp_path, nodes=["gpu-2"])
    assert stat.S_IMODE(conf.stat().st_mode) == 0o640
    assert list(users(before)) == ["admin", "auth", "gateway", "router", "billing", "worker-gpu-1"]
    assert set(users(after)) - set(users(before)) == {"worker-gpu-2"}
    assert users(before).items() <= users(after).items()


def test_no_secret_stands_in_the_configuration(tmp_path: Path) -> None:
    text = made(tmp_path, nodes=["gpu-1"], clients=["billing"])
    seeds = [path.read_text().strip() for path in (tmp_path / "secrets").glob("*.nk")]
    assert len(seeds) == 6
    assert not [seed for seed in seeds if seed in text]
    assert sorted(users(text).values()) == sorted(map(public_key, seeds))


def test_again_changes_nothing_and_says_so(tmp_path: Path) -> None:
    made(tmp_path, nodes=["gpu-1"], servers=["n1.internal"])
    again = write(tmp_path / "secrets", tmp_path / "users.conf", nodes=["gpu-1"], servers=["n1.internal"])
    assert (again.made, again.removed, again.written) == ([], [], [])


def test_a_removed_user_is_gone_with_its_key(tmp_path: Path) -> None:
    made(tmp_path, nodes=["gpu-1", "gpu-2"], clients=["billing"])
    gone = write(tmp_path / "secrets", tmp_path / "users.conf", removed=["worker-gpu-1", "client-billing", "worker-no"])
    assert gone.removed == ["worker-gpu-1", "billing"]
    assert set(users((tmp_path / "users.conf").read_text())) == {"admin", "auth", "gateway", "router", "worker-gpu-2"}
    assert not list((tmp_path / "secrets").glob("*gpu-1*"))


def test_a_key_made_elsewhere_counts_by_its_public_half(tmp_path: Path) -> None:
    seed = new_seed()
    text = made(tmp_path, clients=[f"billing={public_key(seed)}"])
    assert users(text)["billing"] == public_key(seed)
    assert not (tmp_path / "secrets" / "nats-client-billing.nk").exists()
    assert users(made(tmp_path))["billing"] == public_key(seed), "also the next time"


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"nodes": ["a.b"]}, "1 to 64 of the characters"),
        ({"nodes": ["*"]}, "1 to 64 of the characters"),
        ({"nodes": [""]}, "1 to 64 of the characters"),
        ({"nodes": ["router"]}, "cannot be called router"),
        ({"clients": ["gateway"]}, "a service's name"),
        ({"clients": ["worker-gpu-1"]}, "a service's name"),
        ({"clients": ["a>"]}, "1 to 64 of the characters"),
        ({"clients": ["billing=SUABKGPRN7ZWBFSWIWA2ILUT2XE6KESPRUPRX2OHW3WGOITZ5CG4VD4NUU"]}, "no public key"),
        ({"servers": ["a b"]}, "no host name"),
        ({"removed": ["gateway"]}, "does not run without"),
        ({"removed": ["gpu-1"]}, "worker-NODE or client-NAME"),
    ],
)
def test_what_would_widen_a_permission_or_break_the_file_is_refused_before_anything_is_written(
    tmp_path: Path, asked: dict[str, list[str]], why: str
) -> None:
    with pytest.raises(CommandFailed, match=why):
        write(tmp_path / "secrets", tmp_path / "users.conf", **asked)
    assert not (tmp_path / "secrets").exists()


def test_a_damaged_key_is_named_and_not_shown(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / "secrets" / "nats-gateway.nk"
    seed = path.read_text().strip()
    mistyped = seed[:20] + ("A" if seed[20] != "A" else "B") + seed[21:]
    path.write_text(mistyped)
    with pytest.raises(CommandFailed, match=r"nats-gateway\.nk is damaged") as failure:
        made(tmp_path)
    assert mistyped not in str(failure.value)


def test_the_same_users_give_the_same_text() -> None:
    assert render([]) == render([])


def test_the_command_tells_how_to_reload(tmp_path: Path) -> None:
    words = [
        "nats",
        "users",
        "--secrets",
        str(tmp_path / "s"),
        "--conf",
        str(tmp_path / "users.conf"),
        "--node",
        "gpu-1",
    ]
    said = command(*words)
    assert said.returncode == 0, said.stderr
    assert "systemctl reload arriero-nats" in said.stdout
    assert json.loads(command(*words, "--json").stdout) == {"made": [], "removed": [], "written": []}


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "libs.cli", *words], capture_output=True, text=True, timeout=60, check=False
    )
