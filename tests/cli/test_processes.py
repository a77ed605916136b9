"""Which processes make a stack, and what they are told."""

import sys
from pathlib import Path

import pytest

from libs.cli.home import Home
from libs.cli.up.ollama import Node, simulated_nodes
from libs.cli.up.ports import Ports, plan_ports
from libs.cli.up.processes import (
    SIM_VRAM,
    Counts,
    Process,
    Stage,
    child_environment,
    nats_process,
    service_names,
    service_processes,
    sim_processes,
)

NODES = (*simulated_nodes(1, None), Node(name="gpu1", url="http://gpu1:11434", slots=2, reachable=False))
COUNTS = Counts(gateways=2, routers=2)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def ports() -> Ports:
    return plan_ports(8700, gateways=2, services=service_names(COUNTS, NODES), sims=["sim-a"])


@pytest.fixture
def services(home: Home, ports: Ports) -> dict[str, Process]:
    made = service_processes(home, ports, COUNTS, NODES, drain_grace=5, log_level="info")
    return {process.name: process for process in made}


def test_processes_are_named_as_the_design_says(services: dict[str, Process], home: Home, ports: Ports):
    assert list(services) == ["auth", "gateway", "gateway-2", "router", "router-2", "worker-sim-a", "worker-gpu1"]
    assert [process.name for process in sim_processes(ports, NODES)] == ["sim-sim-a"]
    assert nats_process("/bin/nats-server", home, ports).argv == (
        "/bin/nats-server",
        "-c",
        str(home.nats / "server.conf"),
    )


def test_each_service_is_started_as_a_module_with_an_ops_port_of_its_own(services: dict[str, Process]):
    assert services["gateway-2"].argv == (sys.executable, "-m", "services.gateway")
    assert len({process.ops for process in services.values()}) == len(services)
    assert services["router"].ready == f"{services['router'].ops}/readyz"


def test_gateways_listen_on_ports_of_their_own_and_share_the_rest(services: dict[str, Process]):
    first, second = services["gateway"].environment, services["gateway-2"].environment

    assert (first["ARRIERO_GATEWAY_PORT"], second["ARRIERO_GATEWAY_PORT"]) == ("8700", "8750")
    assert first["ARRIERO_GATEWAY_ISSUER"] == second["ARRIERO_GATEWAY_ISSUER"] == "http://127.0.0.1:8701"


def test_a_worker_knows_its_node_and_is_its_own_nats_user(services: dict[str, Process]):
    simulated, real = services["worker-sim-a"].environment, services["worker-gpu1"].environment

    assert simulated["ARRIERO_WORKER_NODE_URL"] == "http://127.0.0.1:8730"
    assert (real["ARRIERO_WORKER_NODE"], real["ARRIERO_WORKER_SLOTS"]) == ("gpu1", "2")
    assert real["ARRIERO_WORKER_NODE_URL"] == "http://gpu1:11434"
    assert real["ARRIERO_WORKER_NATS_USER"] == "worker-gpu1"


def test_up_does_not_wait_for_the_worker_of_an_ollama_that_is_away(services: dict[str, Process]):
    assert [name for name, process in services.items() if not process.needed] == ["worker-gpu1"]


def test_secrets_are_named_as_files_and_stand_nowhere_else(services: dict[str, Process], home: Home, ports: Ports):
    home.open()
    secrets = [
        home.secret(name) for name in ("cluster", "operator", "nats-auth.nk", "nats-gateway.nk", "nats-worker-gpu1.nk")
    ]
    told = [*services.values(), nats_process("nats-server", home, ports), *sim_processes(ports, NODES)]

    for process in told:
        for text in (*process.argv, *process.environment.values()):
            assert not any(secret in text for secret in secrets)
    files = {name: value for name, value in services["auth"].environment.items() if name.endswith("_FILE")}
    assert set(files) == {
        "ARRIERO_AUTH_NATS_NKEY_FILE",
        "ARRIERO_AUTH_CLUSTER_SECRET_FILE",
        "ARRIERO_AUTH_BOOTSTRAP_CLIENT_SECRET_FILE",
    }


def test_those_with_work_in_flight_end_first_and_nats_last(services: dict[str, Process]):
    assert services["gateway"].stage == services["worker-gpu1"].stage == Stage.EDGE
    assert Stage.EDGE < services["router"].stage == services["auth"].stage < Stage.NODE < Stage.NATS


def test_surroundings_are_inherited_ours_wins_and_a_secret_by_value_does_not_beat_our_file(
    services: dict[str, Process],
):
    surroundings = {
        "PATH": "/bin",
        "ARRIERO_AUTH_LOG_LEVEL": "debug",
        "ARRIERO_AUTH_EXTRA": "kept",
        "ARRIERO_AUTH_CLUSTER_SECRET": "from elsewhere",
    }

    given = child_environment(services["auth"], surroundings)

    assert given["PATH"] == "/bin"
    assert given["ARRIERO_AUTH_EXTRA"] == "kept"
    assert given["ARRIERO_AUTH_LOG_LEVEL"] == "info"
    assert "ARRIERO_AUTH_CLUSTER_SECRET" not in given


def test_a_gpu_of_this_machine_is_none_of_a_simulated_nodes(services: dict[str, Process], ports: Ports):
    """Its worker would ask nvidia-smi of this machine; a real node's is left to do so."""
    (sim,) = sim_processes(ports, NODES)

    assert services["worker-sim-a"].environment["ARRIERO_WORKER_VRAM"] == SIM_VRAM
    assert "ARRIERO_WORKER_VRAM" not in services["worker-gpu1"].environment
    assert sim.argv[sim.argv.index("--vram") + 1] == SIM_VRAM
