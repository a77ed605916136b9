"""Who is asked twice to end waits no longer for its answers: it hands them over, and they go on as if nothing had been."""

import signal
from collections.abc import Iterator
from typing import NamedTuple

import httpx
import pytest

from tests.support.clients import ask, http, wait_final
from tests.support.sim_process import SimProcess
from tests.support.stack import Stack, running_stack
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

TOKENS, SHOWN = 60, 20
SIM = (
    "--models", "native:1=1GB:tools:native", "--seed", "7", "--slots", "4", "--disk-gbps", "100", "--decode-tps", "60",
)  # fmt: skip
GRACE_S = 600.0
END_S = 60.0


class Fleet(NamedTuple):
    stack: Stack
    sims: list[SimProcess]


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two nodes, so that there is somebody to hand over to; they are no part of what is ended."""
    sims = [SimProcess(*SIM), SimProcess(*SIM)]
    try:
        nodes = ["--nodes", ",".join(sim.url for sim in sims), "--slots", "4"]
        folder = tmp_path_factory.mktemp("hurrying")
        with running_stack(folder, "--no-demo", "--drain-grace", f"{GRACE_S:g}", *nodes) as stack:
            yield Fleet(stack, sims)
    finally:
        for sim in sims:
            sim.kill()


def begun(fleet: Fleet, client: httpx.Client) -> tuple[str, str]:
    """A job that its node will not end, some way into its answer; no later one hangs: (job, node)."""
    for sim in fleet.sims:
        sim.hold(SHOWN)
    body = {"model": "native:1", "messages": [{"role": "user", "content": ask(TOKENS)}]}
    job = client.post("/jobs", json=body).json()["id"]
    with client.stream("GET", f"/jobs/{job}/stream") as stream:
        got = ""
        for piece in stream.iter_text():
            got += piece
            if got.count("event: token\n") >= SHOWN:
                break
    for sim in fleet.sims:
        sim.hold_no_more()
    return job, client.get(f"/jobs/{job}").json()["node"]


def wait_for_log(stack: Stack, name: str, event: str) -> None:
    log = stack.home / "logs" / f"{name}.log"
    until(lambda: event in log.read_text(), within=END_S)


def check_handed_over(client: httpx.Client, job: str) -> None:
    """It has the answer of a node that nobody interrupts, and to be handed over is no failure."""
    view = wait_final(client, job)
    assert (view["state"], view.get("failed_attempts")) == ("succeeded", None), view
    assert view["lineage"][0]["base"] > 0, view["lineage"]
    body = {"model": "native:1", "messages": [{"role": "user", "content": ask(TOKENS)}]}
    uncut = wait_final(client, client.post("/jobs", json=body).json()["id"])
    assert view["result"]["message"]["content"] == uncut["result"]["message"]["content"]


def test_a_worker_that_is_asked_twice_hands_over_to_another_node(fleet: Fleet) -> None:
    stack = fleet.stack
    with http(stack) as client:
        job, node = begun(fleet, client)
        stack.kill(f"worker-{node}", signal.SIGTERM)
        wait_for_log(stack, f"worker-{node}", "service.draining")
        stack.kill(f"worker-{node}", signal.SIGTERM)
        check_handed_over(client, job)
    assert "was killed" not in stack.output.read_text()


def test_a_second_ctrl_c_hands_over_to_the_next_start(fleet: Fleet) -> None:
    stack = fleet.stack
    with http(stack) as client:
        job, node = begun(fleet, client)
    stack.interrupt()
    wait_for_log(stack, f"worker-{node}", "service.draining")
    assert stack.stop(END_S) == 0
    said = stack.output.read_text()
    assert "was killed" not in said, said
    stack.start()
    with http(stack) as client:
        check_handed_over(client, job)
