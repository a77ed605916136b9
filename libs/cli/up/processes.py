"""Which processes make a stack: names, arguments, environment, and in which order they start and end. No I/O."""

import sys
from collections.abc import Mapping, Sequence
from enum import IntEnum

import msgspec

from libs.cli.home import Home
from libs.cli.up.ollama import Node
from libs.cli.up.ports import HOST, Ports

OPERATOR = "operator"
SIM_DISK_GBPS = 3.0  # a load then takes about a second
SIM_VRAM = "24GB"


class Stage(IntEnum):
    """Ends from the first to the last: whoever works for clients is done before those it needs."""

    EDGE = 0  # gateways and workers: they have work in flight
    CONTROL = 1
    NODE = 2
    NATS = 3


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """`environment` is added to that of `up`; it names files with secrets and holds none. Ready: `ready` answers 200."""

    name: str
    argv: tuple[str, ...]
    ready: str
    stage: Stage
    environment: dict[str, str] = {}
    ops: str = ""  # base URL
    needed: bool = True  # `up` waits for it


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    gateways: int = 1
    routers: int = 1


def numbered(name: str, count: int) -> list[str]:
    """gateway, gateway-2, gateway-3 …"""
    return [name if n == 1 else f"{name}-{n}" for n in range(1, count + 1)]


def service_names(counts: Counts, nodes: Sequence[Node]) -> list[str]:
    """The processes with an ops port, in the order of their ports."""
    return [
        "auth",
        *numbered("gateway", counts.gateways),
        *numbered("router", counts.routers),
        *(f"worker-{node.name}" for node in nodes),
    ]


def url(port: int) -> str:
    return f"http://{HOST}:{port}"


def nats_process(binary: str, home: Home, ports: Ports) -> Process:
    return Process(
        name="nats",
        argv=(binary, "-c", str(home.nats / "server.conf")),
        ready=f"{url(ports.monitor)}/healthz",
        stage=Stage.NATS,
    )


def sim_processes(ports: Ports, nodes: Sequence[Node]) -> list[Process]:
    """All with the same seed: one can then continue another's answer, as two real nodes with one model can."""
    made = []
    for node in nodes:
        if not node.simulated:
            continue
        port = ports.sims[node.name]
        arguments = {
            "--host": HOST,
            "--port": str(port),
            "--models": node.sim_models,
            "--slots": str(node.slots),
            "--disk-gbps": f"{SIM_DISK_GBPS:g}",
            "--vram": SIM_VRAM,
        }
        argv = (sys.executable, "-m", "libs.ollama_sim", *(part for pair in arguments.items() for part in pair))
        made.append(Process(name=f"sim-{node.name}", argv=argv, ready=f"{url(port)}/api/version", stage=Stage.NODE))
    return made


def service_processes(
    home: Home, ports: Ports, counts: Counts, nodes: Sequence[Node], *, drain_grace: float, log_level: str
) -> list[Process]:
    issuer = url(ports.auth)
    cluster = str(home.secret_file("cluster"))

    def service(name: str, user: str, stage: Stage, settings: Mapping[str, str], *, needed: bool = True) -> Process:
        kind = name.partition("-")[0]
        everywhere = {
            "NATS_URL": f"nats://{HOST}:{ports.nats}",
            "NATS_USER": user,
            "NATS_NKEY_FILE": str(home.secret_file(f"nats-{user}.nk")),
            "OPS_HOST": HOST,
            "OPS_PORT": str(ports.ops[name]),
            "DRAIN_GRACE": f"{drain_grace:g}",
            "LOG_LEVEL": log_level,
        }
        ops = url(ports.ops[name])
        return Process(
            name=name,
            argv=(sys.executable, "-m", f"services.{kind}"),
            environment={f"ARRIERO_{kind.upper()}_{key}": value for key, value in {**everywhere, **settings}.items()},
            ready=f"{ops}/readyz",
            ops=ops,
            stage=stage,
            needed=needed,
        )

    auth = {
        "HOST": HOST,
        "PORT": str(ports.auth),
        "ISSUER": issuer,
        "CLUSTER_SECRET_FILE": cluster,
        "BOOTSTRAP_CLIENT_ID": OPERATOR,
        "BOOTSTRAP_CLIENT_SECRET_FILE": str(home.secret_file(OPERATOR)),
    }
    made = [service("auth", "auth", Stage.CONTROL, auth)]
    for name, port in zip(numbered("gateway", counts.gateways), ports.gateways, strict=True):
        gateway = {"HOST": HOST, "PORT": str(port), "ISSUER": issuer, "CLUSTER_SECRET_FILE": cluster}
        made.append(service(name, "gateway", Stage.EDGE, gateway))
    made += [service(name, "router", Stage.CONTROL, {}) for name in numbered("router", counts.routers)]
    for node in nodes:
        node_url = url(ports.sims[node.name]) if node.simulated else node.url
        worker = {"NODE": node.name, "NODE_URL": node_url, "SLOTS": str(node.slots)}
        if node.simulated:  # a GPU of this machine is none of a simulated node's
            worker["VRAM"] = SIM_VRAM
        name = f"worker-{node.name}"
        made.append(service(name, name, Stage.EDGE, worker, needed=node.reachable))
    return made


def child_environment(process: Process, inherited: Mapping[str, str]) -> dict[str, str]:
    """What the child gets: settings of the surroundings, then ours. A secret given as …_FILE hides one given by value.

    PYTHONSAFEPATH: `python -m services.auth` must not find a folder `services` of whoever stands in the current folder.
    """
    hidden = {name.removesuffix("_FILE") for name in process.environment if name.endswith("_FILE")}
    kept = {name: value for name, value in inherited.items() if name not in hidden}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", **process.environment}
