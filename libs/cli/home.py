"""The folder that holds a stack's state: `$ARRIERO_HOME`, else `./.arriero`.

    home.json            what this folder is, and limits that must not shrink
    lock                 held by the `arriero up` that runs; names its pid
    run.json             pids of the processes it started, for whoever comes after a crash
    up.json              where everything is, for clients; only while all is ready
    secrets/<name>       one secret a file; `.nk`: the seed of a NATS user
    clients/<name>.json  clients that `up` made: id, secret, API key
    nats/                configuration and store of the embedded nats-server
    nats-<client>.env    NATS credentials of a client, ready to source
    logs/<process>.log   what each process wrote

Folders are 0700, files 0600, and every file is replaced whole.
"""

import fcntl
import os
import re
import secrets
import stat
from pathlib import Path
from typing import TypeVar

import msgspec

from libs.cli.failures import CommandFailed

T = TypeVar("T")
FORMAT = 1
_SECRET = re.compile(r"[A-Za-z0-9_-]{16,256}")


class About(msgspec.Struct, kw_only=True):
    """`home.json`. `max_file_store` is what streams were promised: nats-server refuses to open them with less."""

    format: int
    max_file_store: int


class MadeClient(msgspec.Struct, kw_only=True, frozen=True):
    """`clients/<name>.json`; also what `arriero client create --json` prints."""

    client_id: str
    client_secret: str
    api_key: str
    name: str
    scopes: list[str] = []
    nats: str = ""  # the public key of its NATS user
    nats_seed_file: str = ""


class UpFile(msgspec.Struct, kw_only=True, frozen=True):
    """`up.json`. URLs without a path; `ops` only has processes with an ops port."""

    gateway: str
    auth: str
    nats: str
    client_id: str
    client_secret: str
    api_key: str
    ops: dict[str, str]
    pids: dict[str, int]


class Holder(msgspec.Struct, kw_only=True):
    """Who holds the lock."""

    pid: int
    gateway: str = ""


class Home:
    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @classmethod
    def here(cls) -> "Home":
        return cls(Path(os.environ.get("ARRIERO_HOME") or ".arriero"))

    # -- files -------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Makes the folder, or checks that it is ours to use. Raises CommandFailed."""
        try:
            for folder in (self.path, self.secrets, self.path / "clients", self.nats, self.logs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if stat.S_IMODE(self.path.stat().st_mode) & 0o077:
                self.path.chmod(0o700)
            probe = self.path / ".writable"
            probe.touch(mode=0o600)
            probe.unlink()
        except (OSError, ValueError) as error:
            raise CommandFailed(
                f"cannot use {self.path} as home: {_why(error)}; set ARRIERO_HOME to a folder of your own",
                code="home_unusable",
            ) from error

    @property
    def secrets(self) -> Path:
        return self.path / "secrets"

    @property
    def nats(self) -> Path:
        return self.path / "nats"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def up_json(self) -> Path:
        return self.path / "up.json"

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    def write(self, path: Path, text: str | bytes) -> None:
        """Replaces a file whole, 0600 from its first byte on."""
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode() if isinstance(text, str) else text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError as error:
            raise CommandFailed(f"cannot write {path}: {_why(error)}", code="home_unusable") from error

    def read(self, path: Path, shape: type[T], *, remedy: str) -> T | None:
        """A JSON file's content, None when there is none. Raises CommandFailed, ending in `remedy`, when it is damaged."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=shape)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise CommandFailed(f"{path} cannot be read ({_why(error)}): {remedy}", code="state_damaged") from error

    # -- secrets -----------------------------------------------------------------------------------------------------

    def secret_file(self, name: str) -> Path:
        return self.secrets / name

    def secret(self, name: str, *, fresh: bool = True) -> str:
        """The secret of that name; made now if there is none. `fresh` False: a missing one is a failure."""
        path = self.secret_file(name)
        try:
            value = path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            if not fresh:
                raise CommandFailed(
                    f"{path} is missing although {self.nats} holds data that depends on it: put it back, "
                    f"or move {self.path} away to start afresh",
                    code="state_damaged",
                ) from None
            value = secrets.token_urlsafe(32)
            self.write(path, value)
        except (OSError, UnicodeDecodeError) as error:
            raise CommandFailed(f"cannot read {path}: {_why(error)}", code="state_damaged") from error
        if not _SECRET.fullmatch(value):
            raise CommandFailed(
                f"{path} is damaged: put the right content back, or move {self.path} away to start afresh",
                code="state_damaged",
            )
        return value

    # -- the lock ----------------------------------------------------------------------------------------------------

    def lock(self, holder: Holder) -> "Lock":
        """Held until the process ends, however it ends. Raises CommandFailed naming who holds it."""
        path = self.path / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise CommandFailed(f"cannot use {path}: {_why(error)}", code="home_unusable") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            try:
                other = msgspec.json.decode(os.read(descriptor, 4096), type=Holder)
                who = f"pid {other.pid}" + (f", gateway {other.gateway}" if other.gateway else "")
            except msgspec.MsgspecError:
                who = "pid unknown"
            finally:
                os.close(descriptor)
            raise CommandFailed(
                f"Arriero already runs with home {self.path} ({who}): end it first, or set ARRIERO_HOME to another folder",
                code="already_running",
            ) from None
        lock = Lock(descriptor)
        lock.say(holder)
        return lock


class Lock:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def say(self, holder: Holder) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, msgspec.json.encode(holder), 0)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
