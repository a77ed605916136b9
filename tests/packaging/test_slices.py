"""Each service's slice (pyproject.toml, libs/, services/__init__.py, services/<x>/) installs and runs alone, from any folder.

No network: the dependencies are those of the environment that runs the tests, only Arriero itself is installed anew.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ("auth", "gateway", "router", "worker")
SECRET = "a-secret-of-at-least-32-characters-for-tests"
NEEDED = {name: {f"ARRIERO_{name.upper()}_CLUSTER_SECRET": SECRET} for name in ("auth", "gateway")}


def copy_slice(to: Path, services: tuple[str, ...]) -> Path:
    without_caches = shutil.ignore_patterns("__pycache__", "*.pyc")
    (to / "services").mkdir(parents=True)
    for file in ("pyproject.toml", "README.md", "services/__init__.py"):
        shutil.copy(ROOT / file, to / file)
    for folder in ("libs", *(f"services/{name}" for name in services)):
        shutil.copytree(ROOT / folder, to / folder, ignore=without_caches)
    return to


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Installed:
    def __init__(self, target: Path) -> None:
        self.target = target

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """From /, with next to nothing in the environment."""
        minimal = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(self.target), **environment}
        words = [str(word) for word in command]
        return subprocess.run(words, cwd="/", env=minimal, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("name", SERVICES)
def test_a_slice_installs_and_runs_alone(tmp_path: Path, name: str):
    source = copy_slice(tmp_path / "slice", (name,))
    pip("install", "--no-index", "--no-deps", "--no-build-isolation", "--target", tmp_path / "target", source)
    slice_ = Installed(tmp_path / "target")

    checked = slice_.run(sys.executable, "-m", f"services.{name}", "--check", **NEEDED.get(name, {}))
    helped = slice_.run(sys.executable, "-m", f"services.{name}", "--help")
    by_script = slice_.run(slice_.target / "bin" / f"arriero-{name}", "--help")
    others = [other for other in SERVICES if other != name]
    program = "import importlib.util as u, services, libs; print(services.__file__, libs.__file__, sep='\\n')\n"
    program += f"print([x for x in {others!r} if u.find_spec('services.' + x)])"
    imported = slice_.run(sys.executable, "-c", program)

    assert checked.returncode == 0, checked.stderr
    assert f"ARRIERO_{name.upper()}_NATS_URL=nats://127.0.0.1:8702" in checked.stdout
    assert SECRET not in checked.stdout
    assert helped.returncode == by_script.returncode == 0
    assert helped.stdout == by_script.stdout
    assert f"usage: arriero-{name}" in helped.stdout
    services, libs, found = imported.stdout.splitlines()
    assert Path(services).is_relative_to(slice_.target)
    assert Path(libs).is_relative_to(slice_.target)
    assert found == "[]"


def test_the_client_library_runs_without_any_service(tmp_path: Path):
    """What an internal service installs: it connects, and says what is wrong when nobody is there."""
    source = copy_slice(tmp_path / "slice", ())
    pip("install", "--no-index", "--no-deps", "--no-build-isolation", "--target", tmp_path / "target", source)
    program = """
import asyncio, importlib.util as u, services
from libs.client import Arriero, NotConnected

async def main():
    try:
        async with Arriero.connect("nats://127.0.0.1:9", client="billing", timeout=0.1):
            pass
    except NotConnected as error:
        print(error.code, [x for x in ("auth", "gateway", "router", "worker") if u.find_spec("services." + x)])

asyncio.run(main())
"""
    done = Installed(tmp_path / "target").run(sys.executable, "-c", program)

    assert (done.stdout, done.stderr) == ("not_connected []\n", "")


@pytest.mark.parametrize("name", ["auth", "gateway"])
def test_without_its_secret_a_service_names_the_setting_and_ends(name: str):
    done = Installed(ROOT).run(sys.executable, "-m", f"services.{name}", "--check")

    assert done.returncode == 2
    assert done.stderr.startswith(f"ARRIERO_{name.upper()}_CLUSTER_SECRET: ")


def test_the_wheel_holds_services_and_libs_and_no_tests(tmp_path: Path):
    source = copy_slice(tmp_path / "all", SERVICES)
    shutil.copytree(ROOT / "tests" / "packaging", source / "tests")
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source)

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        scripts = archive.read("arriero-0.1.0.dist-info/entry_points.txt").decode()
    top = {name.partition("/")[0] for name in names}
    modules = {name for name in names if name.startswith("services/") and name.endswith("/main.py")}
    assert top == {"services", "libs", "arriero-0.1.0.dist-info"}
    assert modules == {f"services/{name}/main.py" for name in SERVICES}
    assert not [name for name in names if "test" in name]
    for command in ("arriero", *(f"arriero-{name}" for name in SERVICES)):
        assert f"{command} = " in scripts
