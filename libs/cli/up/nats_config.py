"""The embedded nats-server's configuration file. Its users lie beside it, in users.conf (`libs.cli.nats_users`)."""

import json
import shlex
from pathlib import Path

# A machine that loses power may lose what was written since the last sync; nats-server's own default is two minutes.
SYNC_INTERVAL = "5s"
MAX_PAYLOAD = 2 * 1024 * 1024  # a record may have 1 MiB (contracts.streams), with its headers and subject
USERS = "users.conf"


def render(*, host: str, port: int, monitor: int, store: Path, max_file_store: int) -> str:
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
        f"include {_quoted(USERS)}",
    ]
    return "\n".join(lines) + "\n"


def environment_file(*, url: str, client: str, seed_file: Path) -> str:
    """Ready to source. NATS_NKEY names the file with the seed, as the `nats` command wants it, and nats-py."""
    return f"NATS_URL={url}\nNATS_USER={client}\nNATS_NKEY={shlex.quote(str(seed_file))}\n"


def sourcing(environment: Path) -> str:
    """For a shell. Exported, or the programs started there would not see it."""
    return f"set -a; . {shlex.quote(str(environment))}; set +a"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
