"""State that outlives a run: modes, secrets, damage, and the lock."""

import stat
from pathlib import Path

import msgspec
import pytest

from libs.cli.failures import CommandFailed
from libs.cli.home import Holder, Home, MadeClient


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.open()
    return home


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_are_0700_and_files_0600(home: Home):
    home.secret("cluster")
    home.write(home.path / "x.json", "{}")

    assert {_mode(path) for path in [home.path, *home.path.rglob("*")] if path.is_dir()} == {0o700}
    assert {_mode(path) for path in home.path.rglob("*") if path.is_file()} == {0o600}


def test_a_home_that_others_could_read_is_closed(tmp_path: Path):
    (tmp_path / "home").mkdir(mode=0o755)

    Home(tmp_path / "home").open()

    assert _mode(tmp_path / "home") == 0o700


def test_a_secret_stays_the_same_and_is_long_enough_for_every_service(home: Home):
    made = home.secret("cluster")

    assert home.secret("cluster") == made
    assert home.secret("other") != made
    assert len(made) >= 32


@pytest.mark.parametrize("content", ["", "short", "white space in it and long enough", "\x00" * 40])
def test_a_damaged_secret_is_refused_and_left_alone(home: Home, content: str):
    home.write(home.secret_file("cluster"), content)

    with pytest.raises(CommandFailed, match="damaged") as failure:
        home.secret("cluster")

    assert failure.value.code == "state_damaged"
    assert home.secret_file("cluster").read_text() == content


def test_a_secret_that_data_depends_on_is_not_made_anew(home: Home):
    with pytest.raises(CommandFailed, match="is missing although"):
        home.secret("cluster", fresh=False)

    assert not home.secret_file("cluster").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"client_id": 5}', b"\xff\xfe"])
def test_a_damaged_file_says_which_and_what_to_do(home: Home, content: bytes):
    path = home.path / "clients" / "demo.json"
    path.write_bytes(content)

    with pytest.raises(CommandFailed, match=r"demo\.json cannot be read .*: put it back"):
        home.read(path, MadeClient, remedy="put it back")


def test_a_home_that_is_a_file_is_one_sentence(tmp_path: Path):
    (tmp_path / "home").write_text("")

    with pytest.raises(CommandFailed, match=r"cannot use .* ARRIERO_HOME"):
        Home(tmp_path / "home").open()


def test_the_second_to_lock_learns_who_was_first(home: Home):
    lock = home.lock(Holder(pid=4711, gateway="http://127.0.0.1:8700"))

    with pytest.raises(CommandFailed, match=r"pid 4711, gateway http://127\.0\.0\.1:8700"):
        home.lock(Holder(pid=4712))

    lock.release()
    home.lock(Holder(pid=4712)).release()


def test_writing_replaces_a_file_whole(home: Home):
    path = home.path / "up.json"
    home.write(path, "x" * 100)
    home.write(path, msgspec.json.encode({"a": 1}))

    assert path.read_bytes() == b'{"a":1}'
    assert [left.name for left in home.path.iterdir() if left.name.startswith(".")] == []
