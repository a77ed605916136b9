"""The audit trail of a whole stack, by the command that operators use; and that what must not be written down is not."""

import asyncio
import base64
import json
import secrets
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from libs.common.audit.chain import START
from libs.common.bus.connection import Bus
from libs.common.contracts.streams import JOBS, OUT, STREAMS
from libs.common.credentials import api_keys
from tests.support.clients import ask, chat_models, http, wait_final
from tests.support.stack import Stack, running_stack
from tests.support.waiting import until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One that says all it can, and is killed in parts."""
    with running_stack(tmp_path_factory.mktemp("audit"), "--no-demo", "--log-level", "debug") as running:
        yield running


def tail(stack: Stack, *options: str) -> list[dict[str, Any]]:
    done = stack.arriero("audit", "tail", "--json", "-n", "1000", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def verify(stack: Stack, *file: str) -> tuple[int, dict[str, Any], str]:
    done = stack.arriero("audit", "verify", *file, "--json")
    said = json.loads(done.stdout)
    return done.returncode, said.get("error", {}).get("details", said), done.stderr


def test_what_happened_is_told_exported_and_verified(own: Stack, tmp_path: Path) -> None:
    made = json.loads(own.arriero("client", "create", "ci", "--json").stdout)
    assert own.arriero("nodes", "drain", "sim-a").returncode == 0
    assert own.arriero("nodes", "resume", "sim-a").returncode == 0
    with http(own) as client:
        job = client.post("/jobs", json={"model": chat_models(client)[0], "prompt": ask(3)}).json()["id"]
        wait_final(client, job)
    told = tail(own)
    by_action = {line["record"]["action"]: line["record"] for line in told}
    assert by_action["client.create"]["target"] in ("ci", own.up["client_id"])
    assert by_action["node.drain"] | {"at_ms": 0} == {
        **by_action["node.drain"], "at_ms": 0, "actor": "operator", "target": "sim-a", "address": "127.0.0.1",
    }  # fmt: skip
    assert by_action["job.submit"]["actor"] == own.up["client_id"]
    assert [line["record"]["action"] for line in tail(own, "--action", "node.*")] == ["node.drain", "node.resume"]
    assert tail(own, "--actor", "nobody") == []
    assert tail(own, "--since", "1h") != []
    text = own.arriero("audit", "tail", "--action", "node.drain").stdout
    assert "allowed" in text
    assert "operator → sim-a" in text

    file = tmp_path / "audit.jsonl"
    exported = own.arriero("audit", "export", str(file))
    assert "checks them" in exported.stdout, exported.stderr
    assert own.arriero("audit", "export", str(file)).returncode == 2  # never over one that is there
    code, said, error = verify(own, str(file))
    assert (code, said["verified"], said["problems"]) == (0, True, []), error
    code, said, _ = verify(own)
    assert (code, said["verified"]) == (0, True)
    human = own.arriero("audit", "verify", str(file)).stdout
    assert "are as they were written" in human
    assert "no goodbye record" in human
    assert made["client_secret"] not in file.read_text()

    lines = file.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if '"node.drain"' in line)
    altered = tmp_path / "altered.jsonl"
    altered.write_text("".join([*lines[:at], lines[at].replace("operator", "somebody"), *lines[at + 1 :]]))
    code, said, error = verify(own, str(altered))
    entry = json.loads(lines[at])
    assert code == 1
    assert said["problems"][0]["kind"] == "altered"
    assert said["problems"][0]["sequence"] == entry["sequence"]
    assert f"audit.{said['problems'][0]['writer']}" == entry["subject"]
    assert f"altered: sequence {entry['sequence']}, record {entry['record']['n']} of" in error
    altered.write_text("".join([*lines[:at], *lines[at + 1 :]]))
    code, said, _ = verify(own, str(altered))
    assert code == 1
    assert [(p["kind"], p["sequence"], p["n"]) for p in said["problems"]] == [
        ("missing", entry["sequence"], entry["record"]["n"])
    ]
    altered.write_text("".join(lines[:-1]))
    cut = own.arriero("audit", "verify", str(altered))
    assert cut.returncode == 1
    assert "is cut off" in cut.stderr
    jwks = tmp_path / "jwks.json"
    jwks.write_bytes(httpx.get(f"{own.up['auth']}/.well-known/jwks.json").content)
    assert own.arriero("audit", "verify", str(file), "--keys", str(jwks)).returncode == 0


def test_a_process_that_is_killed_leaves_a_chain_without_a_goodbye_and_begins_another(own: Stack) -> None:
    def chains() -> set[str]:
        return {
            line["subject"] for line in tail(own, "--action", START) if line["subject"].startswith("audit.gateway.")
        }

    before = chains()
    pid = own.kill("gateway")
    own.wait_for_new_pid("gateway", pid)
    begun = until(lambda: chains() - before)
    assert len(begun) == 1
    code, said, error = verify(own)

    assert code == 0, error
    ended = {writer["writer"]: writer["ended"] for writer in said["writers"]}
    assert {ended[subject.removeprefix("audit.")] for subject in before} == {False}
    assert "no goodbye record" in " ".join(said["remarks"])


# -- the canary --------------------------------------------------------------------------------------------------------------


def base62(length: int) -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


CANARY = "Canary" + base62(37)  # as long as a secret, so that it can be one


def sing(stack: Stack) -> None:
    """The canary in every place where a client may put a text, or a secret in the wrong place."""
    up = stack.up
    key = str(api_keys.ApiKeyText("CanaryKeyId1", CANARY))
    tool = {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": CANARY,
            "parameters": {"type": "object", "properties": {"what": {"type": "string", "enum": [CANARY]}}},
        },
    }
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "look_up", "arguments": json.dumps({"what": CANARY})},
    }
    prompt = ask(5, about=CANARY)
    with http(stack) as client:
        model = chat_models(client)[0]
        job = client.post("/jobs", json={"model": model, "prompt": prompt}, headers={"Idempotency-Key": CANARY}).json()[
            "id"
        ]
        wait_final(client, job)
        client.get(f"/jobs/{job}/stream")
        client.get(f"/jobs/{job}", params={"explain": "1"})
        chat = {"model": model, "messages": [{"role": "user", "content": prompt}]}
        for stream in (False, True):
            assert client.post("/v1/chat/completions", json={**chat, "stream": stream}).status_code == 200
        messages = [
            {"role": "system", "content": CANARY},
            {"role": "user", "content": prompt},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": CANARY},
        ]
        client.post(
            "/v1/chat/completions", json={"model": model, "messages": messages, "tools": [tool], "stop": CANARY}
        )
        for path in ("/jobs", "/v1/chat/completions"):
            for body in (
                f'{{"model": "{CANARY}',
                f'{{"{CANARY}": 1}}',
                f'"{CANARY}"',
                json.dumps({"model": model, "messages": CANARY}),
            ):
                assert client.post(path, content=body).status_code == 400, body
            client.post(path, json={"model": CANARY, "prompt": "x", "messages": [{"role": "user", "content": "x"}]})
            client.post(path, json={"model": model, "prompt": CANARY, "options": {"num_ctx": CANARY}})
        for path in (
            f"/jobs/{CANARY}",
            f"/{CANARY}",
            f"/v1/models/{CANARY}",
            f"/jobs?cursor={CANARY}",
            f"/jobs?{CANARY}=1",
        ):
            client.get(path)
        client.get(f"/jobs/{job}/stream", headers={"Last-Event-ID": CANARY})
        client.delete(f"/jobs/{job}")
    # Not X-Request-Id: that is a name which clients choose to find themselves again in logs (docs/edge.md).
    strange = {
        "X-Custom": CANARY, "User-Agent": CANARY, "traceparent": CANARY, "X-Forwarded-For": CANARY,
        "Forwarded": f"for={CANARY}", "Cookie": f"a={CANARY}", "Referer": f"http://{CANARY}/",
    }  # fmt: skip
    basic = base64.b64encode(f"x:{CANARY}".encode()).decode()
    credentials: list[dict[str, str]] = [
        {"Authorization": f"Bearer {CANARY}"},
        {"Authorization": f"Bearer {key}"},
        {"Authorization": f"Bearer {key[:-1]}"},
        {"Authorization": f"Bearer a.{CANARY}.b"},
        {"Authorization": f"Basic {basic}"},
        {"Authorization": CANARY},
        {"x-api-key": CANARY},
        {"api-key": key},
        {"x-api-key": CANARY, "api-key": key},
        {"Authorization": f"Bearer {up['api_key']}", **strange},
        {"Authorization": f"Bearer {up['api_key']}", "Origin": f"http://{CANARY}"},  # refused before all else
    ]
    with httpx.Client(timeout=60) as client:
        for service in (up["gateway"], up["auth"]):
            for headers in credentials:
                for path in (
                    "/jobs",
                    "/nodes",
                    "/clients",
                    f"/clients/{CANARY}",
                    f"/{CANARY}",
                    f"/jobs?api_key={key}&x={CANARY}",
                ):
                    client.get(service + path, headers=headers)
        for endpoint in ("token", "revoke", "introspect"):
            url = f"{up['auth']}/oauth/{endpoint}"
            form = {"grant_type": "client_credentials", "token": CANARY}
            for auth in ((up["client_id"], CANARY), (CANARY, CANARY), (CANARY, up["client_secret"])):
                client.post(url, data=form, auth=auth)
                client.post(url, data={**form, "client_id": auth[0], "client_secret": auth[1]})
            for more in (
                {"scope": CANARY},
                {"grant_type": CANARY},
                {CANARY: "1"},
                {"token": key},
                {"client_assertion": CANARY},
            ):
                client.post(url, data={**form, **more}, auth=(up["client_id"], up["client_secret"]))
            client.post(url, content=CANARY.encode())
            client.post(f"{url}?client_secret={CANARY}", data=form)
        asked = {"grant_type": "client_credentials", "scope": "admin:clients admin:cluster audit:read"}
        operator = (stack.home / "secrets" / "operator").read_text().strip()
        token = client.post(f"{up['auth']}/oauth/token", data=asked, auth=("operator", operator)).json()["access_token"]
        bearer = {"Authorization": f"Bearer {token}"}
        for body in (f'{{"name": "{CANARY}', json.dumps({"name": "x", CANARY: 1}), json.dumps({"name": f"{CANARY} "})):
            assert client.post(f"{up['auth']}/clients", content=body, headers=bearer).status_code == 400
        assert client.get(f"{up['auth']}/audit?{CANARY}=1", headers=bearer).status_code == 400
        client.get(f"{up['auth']}/audit?action={CANARY}&actor={CANARY}", headers=bearer)
        client.put(f"{up['gateway']}/nodes/sim-a/policy", content=f'{{"{CANARY}": 1', headers=bearer)
        client.post(f"{up['gateway']}/nodes/sim-a/models", content=f'{{"op": "{CANARY}"}}', headers=bearer)


async def heard_in_nats(stack: Stack) -> list[str]:
    """Where the canary stands in NATS: subjects and headers of all streams, bodies of those without requests and answers."""
    bus = Bus("admin")
    await bus.open([stack.up["nats"]], nkey_seed=(stack.home / "secrets" / "nats-admin.nk").read_text().strip())
    found, seen = [], 0
    try:
        for stream in STREAMS:
            sequence = 1
            while messages := await bus.from_sequence(stream.name, ">", sequence, batch=100):
                for message in messages:
                    seen += 1
                    sequence = message.sequence + 1
                    shown = message.subject + repr(message.headers)
                    if stream.name not in (JOBS, OUT):
                        shown += message.data.decode("utf-8", "replace")
                    if CANARY in shown:
                        found.append(f"{stream.name}: {message.subject}: {shown[:2000]}")
    finally:
        await bus.close()
    assert seen > 20
    return found


def test_nothing_of_what_clients_sent_is_written_down_but_in_their_jobs(own: Stack) -> None:
    sing(own)
    exported = own.arriero("audit", "export").stdout
    assert "credential.refuse" in exported
    assert CANARY not in exported
    assert asyncio.run(heard_in_nats(own)) == []
    for name, ops in own.up["ops"].items():
        metrics = httpx.get(f"{ops}/metrics").text
        assert "# HELP" in metrics, name
        assert CANARY not in metrics, name
    logs = [*(own.home / "logs").iterdir(), own.output]
    assert len(logs) > 5
    for log in logs:
        text = log.read_text(errors="replace")
        assert CANARY not in text, f"{log.name}: {next(line for line in text.splitlines() if CANARY in line)}"
