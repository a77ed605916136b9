"""The examples of docs/api.md, as they stand there and in their order, against a real `arriero up`: each gives what is shown.

In what is shown, … stands for anything; times and numbers may be others.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack import running_stack

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SETUP, *EXAMPLES = BLOCKS
STRICT = 'set -euo pipefail\ncurl() { command curl --max-time 60 --no-progress-meter "$@"; echo; }\n'
BETWEEN = "=== the next example ==="
TIME = re.compile(r"20\d\d-\d\d-\d\dT[\d:.]+(Z|\+00:00)")


def is_like(shown: Any, given: Any) -> bool:
    match shown:
        case dict():
            names = shown.keys() - {"…"}
            complete = isinstance(given, dict) and (names <= given.keys() if "…" in shown else names == given.keys())
            return complete and all(is_like(shown[name], given[name]) for name in names)
        case list():
            wanted = [one for one in shown if one != "…"]
            complete = isinstance(given, list) and (
                len(wanted) <= len(given) if "…" in shown else len(wanted) == len(given)
            )
            return complete and all(is_like(one, other) for one, other in zip(wanted, given, strict=False))
        case str():
            return isinstance(given, str) and text_is_like(shown, given)
        case bool() | None:
            return shown is given
    return isinstance(given, int | float) and not isinstance(given, bool)


def text_is_like(shown: str, given: str) -> bool:
    shown, given = TIME.sub("<time>", shown), TIME.sub("<time>", given)
    return re.fullmatch(".*".join(map(re.escape, shown.split("…"))), given, re.DOTALL) is not None


def test_what_is_compared() -> None:
    assert is_like({"a": 1, "b": ["x…", "…"]}, {"a": 2.5, "b": ["xyz", None]})
    assert is_like({"…": "…", "a": None}, {"a": None, "b": 1})
    for shown, given in (
        ({"a": 1}, {"a": 1, "b": 2}), ({"a": 1, "b": 2}, {"a": 1}), ([1], [1, 2]), ([1, "…"], []), (None, 0), (0, None),
        (1, True), (True, False), ("ab…", "b"), ("queued", "bound"), ({"…": "…", "a": 1}, {}),
        ("2026-11-23T16:58:35.264+00:00", "now"),
    ):  # fmt: skip
        assert not is_like(shown, given), (shown, given)


def test_each_example_has_its_answer() -> None:
    assert SETUP[0] == "sh"
    kinds = [kind for kind, _ in EXAMPLES]
    assert kinds[::2] == ["sh"] * (len(kinds) // 2)
    assert set(kinds[1::2]) <= {"json", "text"}
    assert len(kinds) >= 2 * 12


@pytest.mark.e2e
@pytest.mark.skipif("ARRIERO_TEST_OLLAMA" in os.environ, reason="what is shown is a simulated node's")
def test_the_examples_give_what_is_shown(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash
    scripts, answers = [block for _, block in EXAMPLES[::2]], EXAMPLES[1::2]
    with running_stack(tmp_path, "--no-demo") as stack:
        folder = stack.home.parent
        (folder / ".arriero").symlink_to(stack.home)
        environment = {name: value for name, value in stack.environment.items() if name != "ARRIERO_HOME"}
        done = subprocess.run(
            [bash, "-c", STRICT + SETUP[1] + f"echo '{BETWEEN}'\n".join(scripts)],
            cwd=folder, env=environment | {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"},
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    given = done.stdout.split(f"{BETWEEN}\n")
    assert len(given) == len(answers)
    others = [
        (script, said)
        for script, (kind, shown), said in zip(scripts, answers, given, strict=True)
        if not (
            is_like(json.loads(shown), json.loads(said))
            if kind == "json"
            else text_is_like(shown.strip(), said.strip())
        )
    ]
    assert others == []
