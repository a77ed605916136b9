"""The commands of docs/identity.md, as they stand there and in their order, against a real `arriero up`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services.auth.registry import NAME_KEPT_S
from services.auth.requests import DEFAULT_GRACE_S
from tests.support.stack import running_stack

TEXT = (Path(__file__).parents[2] / "docs" / "identity.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
STRICT = 'set -euo pipefail\ncurl() { command curl --fail-with-body --max-time 60 --no-progress-meter "$@"; echo; }\n'


@pytest.mark.e2e
def test_the_commands_work(tmp_path: Path) -> None:
    setup, clients, keys, tokens, signing = BLOCKS
    bash = shutil.which("bash")
    assert bash
    with running_stack(tmp_path, "--no-demo") as stack:
        folder = stack.home.parent
        (folder / ".arriero").symlink_to(stack.home)
        (folder / ".venv").symlink_to(sys.prefix)
        environment = {name: value for name, value in stack.environment.items() if name != "ARRIERO_HOME"}
        said = {}
        for name, block in {"clients": clients, "keys": keys, "tokens": tokens, "signing": signing}.items():
            done = subprocess.run(
                [bash, "-c", STRICT + setup + block],
                cwd=folder, env=environment | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
                capture_output=True, text=True, timeout=180, check=False,
            )  # fmt: skip
            assert done.returncode == 0, (name, done.stdout, done.stderr)
            said[name] = done.stdout
    assert "ci is deleted, and 1 API key with it." in said["clients"]
    assert "laptop" in said["keys"]
    assert "is revoked" in said["keys"]
    before, after = (json.loads(line) for line in said["tokens"].splitlines() if line.startswith("{"))
    assert (before["active"], before["scope"], after) == (True, "jobs:read", {"active": False})
    assert "next" in said["signing"]


def test_its_figures_are_the_codes() -> None:
    assert NAME_KEPT_S == 40 * 86400
    assert DEFAULT_GRACE_S == 86400
