"""The embedded nats-server's users, as data, and its configuration file."""

import json
from pathlib import Path

import msgspec

ADMIN = "admin"
# A machine that loses power may lose what was written since the last sync; nats-server's own default is two minutes.
SYNC_INTERVAL = "5s"
MAX_PAYLOAD = 2 * 1024 * 1024  # a record may have 1 MiB (contracts.streams), with its headers and subject


class User(msgspec.Struct, frozen=True, kw_only=True):
    """None: everything is allowed."""

    name: str
    publish: tuple[str, ...] | None = None
    subscribe: tuple[str, ...] | None = None


def service_users(nodes: tuple[str, ...]) -> tuple[User, ...]:
    """One user per service, and one per worker, so that each can be told apart, narrowed and revoked alone."""
    return (
        User(name=ADMIN),
        User(name="auth"),
        User(name="gateway"),
        User(name="router"),
        *(User(name=f"worker-{node}") for node in nodes),
    )


def client_user(client: str) -> User:
    """What an internal service may do with its own NATS credentials: ask the gateways as itself, and hear about its own jobs."""
    return User(
        name=client,
        publish=(f"api.{client}.>",),
        subscribe=(f"_INBOX.{client}.>", f"out.*.{client}.>", f"evt.{client}.>"),
    )


def render(
    *, host: str, port: int, monitor: int, store: Path, max_file_store: int, users: list[tuple[User, str]]
) -> str:
    """The configuration file; it holds passwords."""
    lines = [
        "# Written by `arriero up` at every start; changes here are lost.",
        "server_name: arriero",
        f"listen: {_quoted(f'{host}:{port}')}",
        f"http: {_quoted(f'{host}:{monitor}')}",
        f"max_payload: {MAX_PAYLOAD}",
        "jetstream {",
        f"  store_dir: {_quoted(str(store))}",
        f"  max_file_store: {max_file_store}",
        f"  sync_interval: {_quoted(SYNC_INTERVAL)}",
        "}",
        "authorization {",
        "  users: [",
        *(_user(user, password) for user, password in users),
        "  ]",
        "}",
    ]
    return "\n".join(lines) + "\n"


def environment_file(*, url: str, client: str, password: str) -> str:
    """Ready to source. Its values need no quoting in a shell: a URL, a subject token, a URL-safe secret."""
    return f"NATS_URL={url}\nNATS_USER={client}\nNATS_PASSWORD={password}\n"


def _user(user: User, password: str) -> str:
    text = f"    {{ user: {_quoted(user.name)}, password: {_quoted(password)}"
    allowed = [
        f"{verb}: {{ allow: [{', '.join(map(_quoted, subjects))}] }}"
        for verb, subjects in (("publish", user.publish), ("subscribe", user.subscribe))
        if subjects is not None
    ]
    return text + (f", permissions: {{ {', '.join(allowed)} }} }}" if allowed else " }")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
