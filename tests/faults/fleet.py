"""A whole Arriero on free ports in a folder of its own: one nats-server or three, auth, two gateways, two routers, nodes."""

import asyncio
import base64
import contextlib
import json
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.provision import create_missing, drift
from tests.faults.plan import EMBEDDER, MODELS
from tests.faults.processes import Process, Spec
from tests.faults.records import Book
from tests.support.nats_server import binary

HOST = "127.0.0.1"
START_S = 40.0
DRAIN_GRACE_S = 6.0
SLOTS = 5
SIM = {"--decode-tps": "250", "--slots": str(SLOTS), "--disk-gbps": "3", "--seed": "7"}
_SPECS = {
    MODELS[0]: "=300MB:template-open",
    MODELS[1]: "=300MB:native",
    MODELS[2]: "=300MB:parser",
    EMBEDDER: "=50MB:embed:dim=16",
}
# Two nodes hold each model, so that one can take over from another.
HOLDINGS = {
    "n1": (MODELS[0], MODELS[1], EMBEDDER),
    "n2": (MODELS[1], MODELS[2], EMBEDDER),
    "n3": (MODELS[2], MODELS[0]),
}
EVERYTHING = "everything"  # the undisturbed node that tells what the answers should be


class _Cable(NamedTuple):
    """A relay process; one port for each NATS server. `ready_port`: where it says that it runs."""

    name: str
    ready_port: int
    ports: tuple[int, ...]


class Fleet:
    def __init__(self, folder: Path, book: Book, http: aiohttp.ClientSession, *, servers: int) -> None:
        self.folder, self.book, self.http = folder, book, http
        self.replicated = servers > 1
        self.api_key = ""
        self._ports = _free_ports(80)
        self.nats = [f"nats-{n}" if self.replicated else "nats" for n in range(1, servers + 1)]
        self.nats_ports = {name: (next(self._ports), next(self._ports), next(self._ports)) for name in self.nats}
        self.auth_port = next(self._ports)
        self.gateway_ports = {name: next(self._ports) for name in ("gateway-1", "gateway-2")}
        self.sim_ports = {f"sim-{node}": next(self._ports) for node in HOLDINGS}
        self.oracle_port = next(self._ports)
        services = ["auth", *self.gateway_ports, "router-1", "router-2", *(f"worker-{node}" for node in HOLDINGS)]
        self.ops_ports = {name: next(self._ports) for name in services}
        self.cables = {
            name: _Cable(f"cable-{name}", next(self._ports), tuple(next(self._ports) for _ in self.nats))
            for name in services
            if name != "auth"
        }
        self._cluster_secret, self._operator_secret = secrets.token_hex(24), secrets.token_hex(24)
        self.processes: dict[str, Process] = {}
        self.bus = Bus("")

    @property
    def names(self) -> dict[str, list[str]]:
        """What may be struck, by role."""
        return {
            "nats": self.nats,
            "gateway": list(self.gateway_ports),
            "router": ["router-1", "router-2"],
            "worker": [f"worker-{node}" for node in HOLDINGS],
            "sim": list(self.sim_ports),
        }

    @property
    def gateways(self) -> list[str]:
        return [f"http://{HOST}:{port}" for port in self.gateway_ports.values()]

    @property
    def oracle(self) -> str:
        return f"http://{HOST}:{self.oracle_port}"

    @property
    def nats_urls(self) -> list[str]:
        return [f"nats://{HOST}:{ports[0]}" for ports in self.nats_ports.values()]

    def cable_of(self, service: str) -> str:
        """The process between a service and NATS."""
        return self.cables[service].name

    async def start(self) -> None:
        async with asyncio.timeout(START_S):
            await self.start_nats()
            await self.bus.open(self.nats_urls, name="faults")
            await self._provision()
            await self._up([*self._sims(), self._service("auth", "auth", self._auth())])
            others = [self._service(n, "gateway", self._gateway(port)) for n, port in self.gateway_ports.items()]
            others += [self._service(name, "router", {}) for name in ("router-1", "router-2")]
            others += [self._service(f"worker-{node}", "worker", self._worker(node)) for node in HOLDINGS]
            await self._up(others)
            self.api_key = await self._make_client()
            await self._until_known()

    async def start_nats(self) -> None:
        """The servers, and the cables that lead to them."""
        await self._up([*map(self._nats, self.nats), *map(self._cable, self.cables.values())])

    async def stop(self) -> None:
        """Cannot fail, and leaves nothing behind."""
        if self.bus.connections:
            with contextlib.suppress(BusError, TimeoutError):
                await self.bus.close()
        await asyncio.gather(*(process.end() for process in self.processes.values()), return_exceptions=True)

    async def leader(self) -> str:
        """The server that leads JOBS now; the first when nobody says."""
        with contextlib.suppress(BusError):
            info = await self.bus.api("STREAM.INFO.JOBS", timeout=2)
            found = info.get("cluster", {}).get("leader")
            if found in self.nats:
                return str(found)
        return self.nats[0]

    async def told_by_nodes(self) -> dict[str, dict[str, Any]]:
        """Every node's newest heartbeat. Raises BusError."""
        found = {}
        for node in HOLDINGS:
            stored = await self.bus.last("KV_nodes", f"$KV.nodes.{node}")
            if stored is not None and stored.data:
                found[node] = json.loads(stored.data)
        return found

    # -- start ---------------------------------------------------------------------------------------------------------

    async def _up(self, specs: list[Spec]) -> None:
        for spec in specs:
            self.processes[spec.name] = process = Process(spec, self.folder, self.book, self.http)
            process.start()
        for spec in specs:
            try:
                await self.processes[spec.name].ready.wait()
            except asyncio.CancelledError:
                tail = self.processes[spec.name].output.read_text(errors="replace")[-1500:]
                print(f"{spec.name} was not ready in time:\n{tail}", file=sys.stderr)
                raise

    async def _provision(self) -> None:
        while True:  # a cluster that has just met may not have a leader for everything yet
            try:
                await create_missing(self.bus, replicas=len(self.nats), free_disk=4 << 30)
                if not await drift(self.bus):
                    return
            except BusError:
                pass
            await asyncio.sleep(0.2)

    async def _make_client(self) -> str:
        """A client's API key, from auth's public surface."""
        base = f"http://{HOST}:{self.auth_port}"
        asked = {"grant_type": "client_credentials", "scope": "admin:clients"}
        pair = base64.b64encode(f"operator:{self._operator_secret}".encode()).decode()
        async with self.http.post(
            f"{base}/oauth/token", data=asked, headers={"Authorization": f"Basic {pair}"}
        ) as answer:
            token = (await answer.json())["access_token"]
        bearer = {"Authorization": f"Bearer {token}"}
        async with self.http.post(f"{base}/clients", json={"name": "load"}, headers=bearer) as answer:
            client = (await answer.json())["client_id"]
        async with self.http.post(f"{base}/clients/{client}/keys", headers=bearer) as answer:
            return str((await answer.json())["api_key"])

    async def _until_known(self) -> None:
        """Both gateways know the key and every model."""
        wanted = {*MODELS, EMBEDDER}
        for gateway in self.gateways:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    bearer = {"Authorization": f"Bearer {self.api_key}"}
                    async with self.http.get(f"{gateway}/v1/models", headers=bearer) as answer:
                        if answer.status == 200 and wanted <= {m["id"] for m in (await answer.json())["data"]}:
                            break
                await asyncio.sleep(0.05)

    # -- what is started -----------------------------------------------------------------------------------------------

    def _nats(self, name: str) -> Spec:
        port, monitor, route = self.nats_ports[name]
        store = self.folder / f"{name}.store"
        lines = [
            f"server_name: {name}", f'listen: "{HOST}:{port}"', f'http: "{HOST}:{monitor}"', "max_payload: 2097152",
            f'jetstream {{ store_dir: "{store}", max_file_store: 8589934592 }}',
        ]  # fmt: skip
        if self.replicated:
            routes = ", ".join(f'"nats-route://{HOST}:{ports[2]}"' for ports in self.nats_ports.values())
            # Told of the servers' own addresses, clients would go around their cables.
            listen = f'listen: "{HOST}:{route}", no_advertise: true'
            lines.append(f"cluster {{ name: faults, {listen}, routes: [{routes}] }}")
        file = self.folder / f"{name}.conf"
        file.write_text("\n".join(lines) + "\n")
        health = "healthz?js-meta-only=true" if self.replicated else "healthz"
        return Spec(name, (binary(), "-c", str(file)), f"http://{HOST}:{monitor}/{health}")

    def _cable(self, cable: "_Cable") -> Spec:
        pairs = [f"{port}:{ports[0]}" for port, ports in zip(cable.ports, self.nats_ports.values(), strict=True)]
        argv = (sys.executable, "-m", "tests.faults.cable", str(cable.ready_port), *pairs)
        return Spec(cable.name, argv, f"http://{HOST}:{cable.ready_port}/")

    def _sims(self) -> list[Spec]:
        def sim(name: str, port: int, models: tuple[str, ...], *more: str) -> Spec:
            held = ",".join(model + _SPECS[model] for model in models)
            given = {"--host": HOST, "--port": str(port), "--models": held, **SIM}
            argv = (sys.executable, "-m", "libs.ollama_sim", *(part for pair in given.items() for part in pair), *more)
            return Spec(name, argv, f"http://{HOST}:{port}/api/version")

        nodes = [sim(f"sim-{node}", self.sim_ports[f"sim-{node}"], held) for node, held in HOLDINGS.items()]
        return [*nodes, sim(EVERYTHING, self.oracle_port, tuple(_SPECS), "--instant")]

    def _service(self, name: str, kind: str, settings: dict[str, str]) -> Spec:
        cable = self.cables.get(name)
        urls = [f"nats://{HOST}:{port}" for port in cable.ports] if cable else self.nats_urls
        everywhere = {
            "NATS_URL": ",".join(urls),
            "OPS_HOST": HOST,
            "OPS_PORT": str(self.ops_ports[name]),
            "DRAIN_GRACE": f"{DRAIN_GRACE_S:g}",
        }
        prefix = f"ARRIERO_{kind.upper()}_"
        environment = {prefix + key: value for key, value in {**everywhere, **settings}.items()}
        argv = (sys.executable, "-m", f"services.{kind}")
        return Spec(name, argv, f"http://{HOST}:{self.ops_ports[name]}/readyz", environment)

    def _auth(self) -> dict[str, str]:
        return {
            "HOST": HOST, "PORT": str(self.auth_port), "ISSUER": f"http://{HOST}:{self.auth_port}",
            "CLUSTER_SECRET": self._cluster_secret, "BOOTSTRAP_CLIENT_ID": "operator",
            "BOOTSTRAP_CLIENT_SECRET": self._operator_secret,
        }  # fmt: skip

    def _gateway(self, port: int) -> dict[str, str]:
        issuer = f"http://{HOST}:{self.auth_port}"
        return {"HOST": HOST, "PORT": str(port), "ISSUER": issuer, "CLUSTER_SECRET": self._cluster_secret}

    def _worker(self, node: str) -> dict[str, str]:
        url = f"http://{HOST}:{self.sim_ports[f'sim-{node}']}"
        return {"NODE": node, "NODE_URL": url, "SLOTS": str(SLOTS)}


@contextlib.asynccontextmanager
async def running_fleet(folder: Path, book: Book, *, servers: int) -> AsyncIterator[Fleet]:
    connector = aiohttp.TCPConnector(limit=0, force_close=False)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=2**14) as http:
        fleet = Fleet(folder, book, http, servers=servers)
        try:
            await fleet.start()
            yield fleet
        finally:
            await fleet.stop()


def _free_ports(count: int) -> Any:
    """Free at the moment, below those that connections get, in a range of this test process's own: processes keep theirs."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    base = 28000 + worker * 2300 + os.getpid() * count % 1800
    free = []
    for port in range(base, base + 500):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            free.append(port)
        if len(free) == count:
            return iter(free)
    raise AssertionError("no free ports")
