"""NATS users of a stack: their nkeys as files, and the part of nats-server's configuration that holds their permissions.

A user is there when `nats-<user>.nk` (its seed, a secret) or `nats-<user>.pub` (the public key, for a seed that was made or
moved elsewhere) is. The configuration names public keys only.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from secrets import token_hex

import msgspec

from libs.cli.failures import CommandFailed
from libs.common.contracts.permissions import (
    CROSSINGS,
    SERVICES,
    Account,
    NatsUser,
    client_user,
    permissions,
    worker_user,
)
from libs.common.contracts.subjects import BadToken

ADMIN = SERVICES[0]
_FILE = re.compile(r"nats-(?:(?P<kind>worker|client)-)?(?P<name>[A-Za-z0-9_-]+)\.(?:nk|pub)")


_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}")
HEAD = "# Written by `arriero nats users`. Public keys only: nothing in here is a secret.\n"


class Keyed(msgspec.Struct, frozen=True):
    user: NatsUser
    public: str


def render(users: Iterable[Keyed]) -> str:
    """The accounts of nats-server; to be included. The same users give the same text."""
    by_account: dict[Account, list[Keyed]] = {account: [] for account in Account}
    for keyed in users:
        by_account[keyed.user.account].append(keyed)
    lines = ["accounts {"]
    for account, members in by_account.items():
        lines += [f"  {account} {{"]
        if account is Account.ARRIERO:
            lines += ["    jetstream: enabled"]
        lines += ["    users: [", *(line for keyed in members for line in _user(keyed)), "    ]"]
        lines += ["    exports: [", *_exports(account), "    ]", "    imports: [", *_imports(account), "    ]", "  }"]
    return "\n".join([*lines, "}"]) + "\n"


def _user(keyed: Keyed) -> list[str]:
    may = permissions(keyed.user)
    lines = [f"      {{ # {keyed.user.name}", f"        nkey: {keyed.public}"]
    if may.publish is not None:
        deny = f", deny: {_list(may.deny)}" if may.deny else ""
        lines += ["        permissions {", f"          publish: {{ allow: {_list(may.publish)}{deny} }}"]
        lines += [f"          subscribe: {{ allow: {_list(may.subscribe or ())} }}", "        }"]
    return [*lines, "      }"]


def _exports(account: Account) -> list[str]:
    other = next(each for each in Account if each is not account)
    return [
        f"      {{ {'service' if crossing.answered else 'stream'}: {_quoted(crossing.subject)}, accounts: [{other}] }}"
        for crossing in CROSSINGS
        if crossing.source is account
    ]


def _imports(account: Account) -> list[str]:
    return [
        f"      {{ {'service' if crossing.answered else 'stream'}: "
        f"{{ account: {crossing.source}, subject: {_quoted(crossing.subject)} }} }}"
        for crossing in CROSSINGS
        if crossing.source is not account
    ]


def _list(subjects: Iterable[str]) -> str:
    return f"[{', '.join(map(_quoted, subjects))}]"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def named(text: str) -> NatsUser:
    """auth, worker-gpu-1, client-billing … as files and commands name them. Raises CommandFailed."""
    try:
        for user in SERVICES:
            if user.name == text:
                return user
        kind, dash, own = text.partition("-")
        if dash and kind == "worker":
            return worker_user(own)
        if dash and kind == "client":
            return client_user(own)
    except BadToken as error:
        raise CommandFailed(str(error), code="usage") from error
    raise CommandFailed(f"{text!r} is no user: name a service, worker-NODE or client-NAME", code="usage")


def file_name(user: NatsUser) -> str:
    """Without its ending."""
    return f"nats-client-{user.own}" if user.kind == "client" else f"nats-{user.name}"


def kept(secrets: Path) -> dict[str, NatsUser]:
    """The users whose keys lie there, by file name, in the order of the configuration. Raises CommandFailed."""
    found = {}
    for path in sorted(secrets.glob("nats-*")):
        if match := _FILE.fullmatch(path.name):
            kind, name = match["kind"], match["name"]
            user = named(f"{kind}-{name}" if kind else name)
            found[file_name(user)] = user
    services = [user for user in SERVICES if file_name(user) in found]
    others = [user for user in found.values() if user not in services]
    return {file_name(user): user for user in [*services, *sorted(others, key=lambda user: (user.kind, user.own))]}


def ensure_seed(secrets: Path, user: NatsUser) -> Path:
    """The file with the user's seed, made now unless its seed or public key is there. Raises CommandFailed."""
    from libs.common.bus.nkeys import new_seed

    path = secrets / f"{file_name(user)}.nk"
    if not path.exists() and not path.with_suffix(".pub").exists():
        put(path, new_seed() + "\n")
    return path


def seed(secrets: Path, user: NatsUser) -> str:
    """A user's seed, from its file. Raises CommandFailed."""
    path = secrets / f"{file_name(user)}.nk"
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"cannot read {path}: {error}", code="state_damaged") from error


def put(path: Path, text: str) -> bool:
    """Replaces a file's content, if it is another one: was it? A new file is 0600; one that is there keeps owner and mode, so
    that nats-server can still read it. Raises CommandFailed."""
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return False
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if path.exists():
                before = path.stat()
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        aside.replace(path)
    except OSError as error:
        raise CommandFailed(f"cannot write {path}: {error.strerror or error}", code="file_unwritable") from error
    return True


def keyed(secrets: Path, users: Mapping[str, NatsUser]) -> list[Keyed]:
    """With the public key of each, from its seed or its .pub. Raises CommandFailed."""
    from libs.common.bus.nkeys import BadNkey, is_public, public_key

    found = []
    for name, user in users.items():
        seed, public = secrets / f"{name}.nk", secrets / f"{name}.pub"
        path = seed if seed.exists() else public
        try:
            text = path.read_text(encoding="utf-8").strip()
            key = public_key(text) if path is seed else text
        except (OSError, UnicodeDecodeError) as error:
            raise CommandFailed(f"cannot read {path}: {error}", code="state_damaged") from error
        except BadNkey as error:
            raise CommandFailed(f"{path} is damaged: {error}", code="state_damaged") from error
        if not is_public(key):
            raise CommandFailed(
                f"{path} holds no public key of a user (U and 55 more characters)", code="state_damaged"
            )
        found.append(Keyed(user, key))
    return found


class Written(msgspec.Struct, frozen=True):
    """Paths of keys that were made, names of users that are gone, paths of configuration that is another one now."""

    made: list[str]
    removed: list[str]
    written: list[str]


def write(
    secrets: Path,
    conf: Path,
    *,
    nodes: Sequence[str] = (),
    clients: Sequence[str] = (),
    removed: Sequence[str] = (),
    servers: Sequence[str] = (),
) -> Written:
    """Everything is checked before anything is changed. Raises CommandFailed."""
    wanted: dict[NatsUser, str] = dict.fromkeys(SERVICES, "")
    wanted |= {named(f"worker-{node}"): "" for node in nodes}
    for text in clients:
        name, _, key = text.partition("=")
        wanted[named(f"client-{name}")] = _public(key)
    going = [named(text) for text in removed]
    for user in going:
        if user in SERVICES:
            raise CommandFailed(f"{user.name} is a service's user: Arriero does not run without", code="usage")
    for host in servers:
        if not _HOST.fullmatch(host):
            raise CommandFailed(f"{host!r} is no host name", code="usage")
    try:
        secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
        gone = [user.name for user in going if _delete(secrets, user)]
        before = set(secrets.iterdir())
        for user, key in wanted.items():
            if key:
                (secrets / f"{file_name(user)}.nk").unlink(missing_ok=True)
                put(secrets / f"{file_name(user)}.pub", key + "\n")
            else:
                ensure_seed(secrets, user)
        written = []
        if servers and put(conf.with_name("route.conf"), _routes(secrets, servers)):
            written.append(str(conf.with_name("route.conf")))
        if put(conf, HEAD + render(keyed(secrets, kept(secrets)))):
            written.append(str(conf))
        made = sorted(str(path) for path in set(secrets.iterdir()) - before)
    except OSError as error:
        raise CommandFailed(f"cannot use {secrets}: {error.strerror or error}", code="file_unwritable") from error
    return Written(made, gone, written)


def _public(key: str) -> str:
    from libs.common.bus.nkeys import is_public

    if key and not is_public(key):
        raise CommandFailed(f"{key[:64]!r} is no public key of a user (U and 55 more characters)", code="usage")
    return key


def _delete(secrets: Path, user: NatsUser) -> bool:
    found = [secrets / f"{file_name(user)}{ending}" for ending in (".nk", ".pub")]
    there = [path for path in found if path.exists()]
    for path in there:
        path.unlink()
    return bool(there)


def _routes(secrets: Path, servers: Sequence[str]) -> str:
    path = secrets / "nats-route"
    if not path.exists():
        put(path, token_hex(32) + "\n")
    password = path.read_text(encoding="utf-8").strip()
    lines = [f'authorization {{ user: "route", password: "{password}" }}', "routes: ["]
    lines += [f'  "nats://route:{password}@{host}:6222"' for host in servers]
    return "\n".join(["# Written by `arriero nats users`; it holds a password.", *lines, "]"]) + "\n"
