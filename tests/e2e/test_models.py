"""`arriero models` and `arriero nodes` against a whole stack: pull, load, pin, unload, settings, drain."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.clients import ask, http, wait_final
from tests.support.stack import Stack, running_stack
from tests.support.waiting import until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two simulated nodes of its own: what is pulled and pinned here is nobody else's business."""
    with running_stack(tmp_path_factory.mktemp("models"), "--no-demo", "--sim", "2") as running:
        yield running


def said(fleet: Stack, *words: str) -> Any:
    done = fleet.arriero(*words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def refused(fleet: Stack, *words: str, code: int = 1) -> str:
    done = fleet.arriero(*words)
    assert (done.returncode, done.stdout) == (code, ""), done.stdout + done.stderr
    return done.stderr


def nodes(fleet: Stack) -> dict[str, Any]:
    return {node["name"]: node for node in asked(fleet, "nodes")}


def model(fleet: Stack, name: str) -> Any:
    return next((each for each in asked(fleet, "models") if each["name"] == name), None)


def asked(fleet: Stack, what: str) -> Any:
    """What the command would list, without a process for each look."""
    up = fleet.up
    wish = {"grant_type": "client_credentials", "scope": "admin:cluster"}
    operator = ("operator", (fleet.home / "secrets" / "operator").read_text().strip())
    answer = httpx.post(f"{up['auth']}/oauth/token", data=wish, auth=operator)
    answer.raise_for_status()
    with http(fleet, answer.json()["access_token"]) as client:
        return client.get(f"/{what}").json()[what]


def holders(fleet: Stack, name: str) -> set[str]:
    """Nodes that have it in memory."""
    found = model(fleet, name)
    return {at["name"] for at in found["nodes"] if at["loaded"]} if found else set()


def test_a_model_is_pulled_loaded_pinned_and_unloaded(fleet: Stack) -> None:
    first, second = sorted(nodes(fleet))
    assert {node["name"]: node["vram"] for node in said(fleet, "nodes")["nodes"]} == dict.fromkeys(
        (first, second), 24 * 10**9
    )

    pulled = fleet.arriero("models", "pull", "brand-new:1b", "--all")
    assert pulled.returncode == 0, pulled.stderr
    assert {f"brand-new:1b pulled on {name}" for name in (first, second)} == set(pulled.stdout.splitlines())
    for name in (first, second):
        assert f"{name}: pulling " in pulled.stderr
        assert f"{name}: pulled 100 %" in pulled.stderr
    until(lambda: (listed := model(fleet, "brand-new:1b")) and len(listed["nodes"]) == 2)

    loaded = said(fleet, "models", "load", "brand-new:1b")["results"]
    assert [line["state"] for line in loaded] == ["done"]
    until(lambda: holders(fleet, "brand-new:1b") == {loaded[0]["node"]})
    unloaded = said(fleet, "models", "unload", "brand-new:1b")["results"]
    assert [line["node"] for line in unloaded] == [loaded[0]["node"]]
    until(lambda: not holders(fleet, "brand-new:1b"))
    assert said(fleet, "models", "unload", "brand-new:1b")["results"] == []

    pinned = said(fleet, "models", "pin", "brand-new:1b", second)
    assert pinned["policy"]["pins"] == [second]
    until(lambda: holders(fleet, "brand-new:1b") == {second})
    (there,) = (at for at in model(fleet, "brand-new:1b")["nodes"] if at["loaded"])
    assert there["expires_at"] > "2100", "for ever"
    listed = fleet.arriero("models").stdout
    (row,) = (line for line in listed.splitlines() if line.startswith("brand-new:1b"))
    assert f"{second}*!" in row

    assert said(fleet, "models", "unpin", "brand-new:1b")["policy"]["pins"] == []
    until(lambda: next(at for at in model(fleet, "brand-new:1b")["nodes"] if at["loaded"])["expires_at"] < "2100")


def test_settings_of_a_model_change_one_by_one(fleet: Stack) -> None:
    name = next(node for node in nodes(fleet).values())["models"][0]["name"]
    said(fleet, "models", "set", name, "--num-ctx", "8192", "--keep-alive", "-1")
    policy = said(fleet, "models", "set", name, "--on-cpu", "never")["policy"]
    assert policy == {"pins": [], "num_ctx": 8192, "keep_alive": -1, "on_cpu": "never"}
    where = said(fleet, "models", "load", name)["results"][0]["node"]

    def context() -> bool:
        places = model(fleet, name)["nodes"]
        return any(at["name"] == where and at["context_length"] == 8192 for at in places)

    until(context)
    policy = said(fleet, "models", "set", name, "--num-ctx", "auto", "--keep-alive", "auto", "--on-cpu", "auto")[
        "policy"
    ]
    assert policy == {"pins": [], "num_ctx": None, "keep_alive": None, "on_cpu": "auto"}


def test_a_node_is_drained_until_it_is_idle_and_resumed(fleet: Stack) -> None:
    everyone = nodes(fleet)
    name, only_here = next(
        (node["name"], model["name"])
        for node in everyone.values()
        for model in node["models"]
        if "embed" not in model["name"] and model["name"] not in ("brand-new:1b",)
    )
    with http(fleet) as client:
        job = submit(client, only_here, 800)
        until(lambda: nodes(fleet)[name]["running"] == 1)
        drained = said(fleet, "nodes", "drain", name)
        assert drained["draining"] is True
        until(lambda: nodes(fleet)[name]["state"] == "draining")
        waited = said(fleet, "nodes", "drain", name, "--wait")
        assert (waited["draining"], waited["running"]) == (True, 0)
        assert wait_final(client, job)["state"] == "succeeded", "what ran could finish"
        said(fleet, "nodes", "resume", name)
        until(lambda: nodes(fleet)[name]["state"] == "ready")
        assert wait_final(client, submit(client, only_here, 5))["state"] == "succeeded"


def submit(client: httpx.Client, model: str, tokens: int) -> str:
    answer = client.post("/jobs", json={"model": model, "prompt": ask(tokens)})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_what_cannot_be_done_is_one_sentence_that_says_what_can(fleet: Stack) -> None:
    first = min(nodes(fleet))
    assert f"there are: {first}" in refused(fleet, "nodes", "drain", "nowhere")
    assert "arriero models pull nothing:1b --node NODE" in refused(fleet, "models", "load", "nothing:1b")
    assert "no node has the model" in refused(fleet, "models", "pin", "nothing:1b", first)
    assert "pull model manifest" in refused(fleet, "models", "pull", "no-such.example/a/b:1", "--node", first)
    some = nodes(fleet)[first]["models"][0]["name"]
    assert "keep_alive must be" in refused(fleet, "models", "set", some, "--keep-alive", "5 parsecs")
    assert "--node NODE" in refused(fleet, "models", "pull", "a:1", code=2)
    assert "name what shall change" in refused(fleet, "models", "set", "a:1", code=2)
    failed = fleet.arriero("models", "pull", "no-such.example/a/b:1", "--node", first, "--json")
    error = json.loads(failed.stdout)["error"]
    assert (failed.returncode, error["code"], error["details"]["results"][0]["node"]) == (1, "node_failed", first)


def test_a_client_without_rights_sees_names_only(fleet: Stack) -> None:
    up = fleet.up
    environment = {name: value for name, value in fleet.environment.items() if name != "ARRIERO_HOME"}
    environment |= {
        "ARRIERO_URL": up["gateway"],
        "ARRIERO_API_KEY": up["api_key"],
        "ARRIERO_HOME": str(fleet.home / "none"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "libs.cli", "models", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert all(set(each) == {"name"} for each in json.loads(done.stdout)["models"])
