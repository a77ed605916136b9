"""The README's commands, as they stand there, against a real `arriero up`; and its links lead somewhere."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import chat_models, http
from tests.support.stack import Stack, running_stack

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SETUP, *BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
STRICT = 'set -euo pipefail\ncurl() { command curl --fail-with-body --max-time 60 --no-progress-meter "$@"; echo; }\n'


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("readme"), "--no-demo") as running:
        (running.home.parent / ".arriero").symlink_to(running.home)
        (running.home.parent / ".venv").symlink_to(sys.prefix)
        yield running


def paste(stack: Stack, block: str) -> str:
    """What the block prints, in a folder that looks like a checkout in which `make up` runs."""
    with http(stack) as client:
        model = "llama3.2:3b" if "ARRIERO_TEST_OLLAMA" not in os.environ else chat_models(client)[0]
    environment = {name: value for name, value in stack.environment.items() if name != "ARRIERO_HOME"}
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run(
        [bash, "-c", STRICT + SETUP + block.replace("llama3.2:3b", model)],
        cwd=stack.home.parent, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.e2e
def test_the_commands_of_the_readme_work(stack: Stack) -> None:
    """One test, in their order: starting a stack for each would cost more than all of them."""
    chat, job, oauth = BLOCKS

    assert paste(stack, chat).rstrip().endswith("data: [DONE]")

    said = paste(stack, job)
    assert "event: succeeded" in said
    assert '"state":"succeeded"' in said.replace(" ", "")
    assert len(re.findall(r"^id: ", said, re.MULTILINE)) > 1

    said = paste(stack, oauth)
    assert '"object":"list"' in said.replace(" ", "")
    assert '"api_key"' in said
    assert "gateway" in said


def test_every_link_leads_to_a_file() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_test_that_the_readme_names_is_there() -> None:
    for name in re.findall(r"`(tests/[^`]+)`", README):
        assert list(ROOT.glob(name.rstrip("/"))), name
