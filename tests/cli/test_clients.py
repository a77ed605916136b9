"""`arriero client …` and `arriero key …` against a real auth service, as processes."""

import asyncio
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import ECKey

from libs.cli import client_options as options
from libs.cli.failures import CommandFailed
from tests.auth.running import OPERATOR, OPERATOR_SECRET, Auth, running_auth
from tests.support.nats_server import NatsServer


async def run(auth: Auth, *words: str, code: int = 0) -> Any:
    """What it prints: with --json decoded."""
    environment = {
        **os.environ, "ARRIERO_AUTH_URL": auth.url, "ARRIERO_CLIENT_ID": OPERATOR, "ARRIERO_CLIENT_SECRET": OPERATOR_SECRET,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "libs.cli", *words, env=environment, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    assert process.returncode == code, said
    return json.loads(said) if "--json" in words else said.decode()


async def test_a_clients_life_from_the_command_line(nats: NatsServer, tmp_path: Path) -> None:
    public = tmp_path / "public.json"
    public.write_text(json.dumps(ECKey.generate_key("P-256").as_dict(private=False)))
    async with running_auth(nats) as auth:
        made = await run(
            auth, "client", "create", "ci", "--scope", "inference", "--scope", "jobs:read", "--weight", "2",
            "--allow", "llama3*", "--deny", "hf.co/*", "--limit", "requests_per_minute=60", "--limit", "queued=5",
            "--expires", "30d", "--json",
        )  # fmt: skip
        assert made["client_id"] == "ci"
        assert (await auth.token("ci", made["client_secret"])).status_code == 200
        shown = await run(auth, "client", "show", "ci", "--json")
        assert shown["policy"]["models"] == {"allow": ["llama3*"], "deny": ["hf.co/*"]}
        assert (shown["policy"]["limits"]["requests_per_minute"], shown["policy"]["limits"]["queued"]) == (60, 5)
        assert 29.9 * 86400 < shown["expires_at"] - time.time() <= 30 * 86400
        assert len(shown["keys"]) == 1

        updated = await run(
            auth, "client", "update", "ci", "--limit", "queued=9", "--deny", "any", "--max-running", "3",
            "--expires", "never", "--jwks", str(public), "--json",
        )  # fmt: skip
        assert updated["policy"]["limits"] | {"x": 0} == shown["policy"]["limits"] | {"queued": 9, "x": 0}
        assert updated["policy"]["models"] == {"allow": ["llama3*"], "deny": []}
        assert (updated["policy"]["max_running"], updated["expires_at"], updated["scopes"]) == (
            3, None, ["inference", "jobs:read"],
        )  # fmt: skip
        assert len(updated["jwks"]["keys"]) == 1
        assert "queued=9" in await run(auth, "client", "show", "ci")

        rotated = await run(auth, "client", "rotate", "ci", "--grace", "1h", "--json")
        assert [3000 < until - time.time() <= 3600 for until in rotated["replaced_until"]] == [True]
        for secret in (made["client_secret"], rotated["client_secret"]):
            assert (await auth.token("ci", secret)).status_code == 200
        said = await run(auth, "client", "rotate", "ci", "--now")
        assert "no longer counts" in said
        assert (await auth.token("ci", rotated["client_secret"])).status_code == 401
        newest = said.split()[2]
        assert (await run(auth, "client", "disable", "ci", "--json"))["disabled"] is True
        assert (await auth.token("ci", newest)).status_code == 401
        assert "disabled" in await run(auth, "client", "list")
        assert (await run(auth, "client", "enable", "ci", "--json"))["disabled"] is False
        assert (await auth.token("ci", newest)).status_code == 200
        await run(auth, "client", "update", "ci", "--drop-secret")
        assert (await auth.token("ci", newest)).status_code == 401

        key = await run(
            auth, "key", "create", "ci", "--name", "laptop", "--scope", "jobs:read", "--allow", "llama3*",
            "--limit", "tokens-per-day=1000", "--expires", "2100-01-01", "--json",
        )  # fmt: skip
        assert (key["name"], key["scopes"], key["models"]["allow"]) == ("laptop", ["jobs:read"], ["llama3*"])
        assert (key["limits"]["tokens_per_day"], key["expires_at"]) == (1000, 4102444800)
        listed = await run(auth, "key", "list", "ci", "--json")
        assert {one["key_id"] for one in listed} == {key["key_id"], shown["keys"][0]["key_id"]}
        assert "laptop" in await run(auth, "key", "list")
        assert (await run(auth, "key", "revoke", key["api_key"], "--json"))["key_id"] == key["key_id"]
        assert len(await run(auth, "key", "list", "--json")) == 1
        assert "1 API key" in await run(auth, "client", "delete", "ci")
        gone = await run(auth, "client", "show", "ci", "--json", code=1)
        assert gone["error"]["code"] == "not_found"

        robot = await run(auth, "client", "create", "robot", "--jwks", str(public), "--json")
        assert (robot["client_secret"], robot["api_key"]) == ("", "")
        refused = await run(auth, "client", "update", "robot", "--json", code=2)
        assert refused["error"]["code"] == "usage"
        bad = await run(auth, "client", "update", "robot", "--scope", "root", "--json", code=1)
        assert bad["error"]["code"] == "invalid_request"


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("90s", NOW + 90),
        ("30m", NOW + 1800),
        ("12h", NOW + 12 * 3600),
        ("30d", NOW + 30 * 86400),
        ("2w", NOW + 14 * 86400),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC).timestamp()),
        ("2027-01-31T12:00:00+02:00", datetime(2027, 1, 31, 10, tzinfo=UTC).timestamp()),
    ],
)
def test_times_are_read_as_people_write_them(text: str, at: float) -> None:
    assert options.expiry(text, NOW) == at


@pytest.mark.parametrize("text", ["", "soon", "5", "5 days", "-5d", "2027-13-01", "9999999999999d"])
def test_other_times_are_wrong_usage(text: str) -> None:
    with pytest.raises(CommandFailed) as refused:
        options.expiry(text, NOW)
    assert refused.value.code == "usage"
    with pytest.raises(CommandFailed):
        options.grace(text)


@pytest.mark.parametrize("said", ["queued", "queued=", "queued=x", "queued=-1", "per_second=1", "=5"])
def test_other_limits_are_wrong_usage(said: str) -> None:
    with pytest.raises(CommandFailed) as refused:
        options.limits([said])
    assert refused.value.code == "usage"


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b'{"keys": 1}', b"\xff"])
def test_a_file_without_keys_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CommandFailed) as refused:
        options.key_set(file)
    assert refused.value.code == "usage"
    assert str(file) in str(refused.value)
