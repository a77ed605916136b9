"""Arriero on several machines as docs/multi-node.md sets it up: the files of deploy/, and nothing but environment."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from libs.cli.nats_users import Written, write
from tests.netns.network import Machine, Network
from tests.support.clients import Sse, parse_sse
from tests.support.nats_server import binary
from tests.support.waiting import until

DEPLOY = Path(__file__).parents[2] / "deploy"
OPS = {"auth": 8711, "gateway": 8710, "router": 8712, "worker": 8720}  # as in deploy/env
TPS = 20  # of the simulated nodes: slow enough to be cut in mid-answer
NATS_PORT = 4222
END_S = 10.0


def inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("ARRIERO_", "OLLAMA_"))}


def make_users(
    folder: Path, *, nodes: Sequence[str] = (), clients: Sequence[str] = (), servers: Sequence[str] = ()
) -> Written:
    """As `arriero nats users` does, without the second that a process takes to start."""
    return write(folder / "secrets", folder / "users.conf", nodes=nodes, clients=clients, servers=servers)


class World:
    """`hub` has NATS, auth, router and a gateway; every node has a machine of its own; `client` only asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = Network()
        self.secrets = folder / "secrets"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.api_key = ""

    # -- what the operator does ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self.network.start()
        self.hub, self.client = self.network.machine("hub"), self.network.machine("client")
        self.users()
        for name in ("cluster", "operator"):
            (self.secrets / name).write_text(f"{name}-secret-of-this-test-" + "x" * 16)

    def config(self, name: str) -> str:
        """One of deploy/nats, with a store of this world's own."""
        return (DEPLOY / "nats" / name).read_text().replace("/var/lib/arriero/nats", str(self.folder / "store"))

    def users(self, *nodes: str, servers: Sequence[str] = ()) -> None:
        make_users(self.folder, nodes=nodes, servers=servers)

    def start_nats(self) -> None:
        path = self.folder / "server.conf"
        path.write_text(self.config("server.conf"))
        self.start("nats", self.hub, binary(), "-c", str(path), environment=inherited())
        until(lambda: self.look(self.hub, 8222, "/healthz"), within=40)

    def environment(self, kind: str, **changed: str) -> dict[str, str]:
        """deploy/env/<kind>.env with this network's addresses and this folder's secrets, then `changed`."""
        text = (DEPLOY / "env" / f"{kind}.env").read_text()
        text = text.replace("hub.internal", self.hub.address).replace("/etc/arriero/secrets", str(self.secrets))
        found = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
        return inherited() | found | {f"ARRIERO_{kind.upper()}_{name}": value for name, value in changed.items()}

    def start_service(self, name: str, machine: Machine, **changed: str) -> None:
        kind = name.partition("-")[0]
        self.start(
            name, machine, sys.executable, "-m", f"services.{kind}", environment=self.environment(kind, **changed)
        )

    def start_node(self, node: str, machine: Machine, models: str, **changed: str) -> None:
        sim = ["--host", "127.0.0.1", "--port", "11434", "--models", models, "--slots", "2", "--decode-tps", str(TPS)]
        self.start(f"ollama-{node}", machine, sys.executable, "-m", "libs.ollama_sim", *sim, environment=inherited())
        self.start_service(f"worker-{node}", machine, **self.node_settings(node) | changed)

    def node_settings(self, node: str) -> dict[str, str]:
        return {
            "NATS_USER": f"worker-{node}", "NATS_NKEY_FILE": str(self.secrets / f"nats-worker-{node}.nk"),
            "NODE": node, "SLOTS": "2",
        }  # fmt: skip

    def cli(self, machine: Machine, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["ip", "netns", "exec", machine.namespace, sys.executable, "-m", "libs.cli", *words]
        env = inherited() | {"ARRIERO_HOME": str(self.folder / "home")} | environment
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    def init(self, *words: str, at: Machine | None = None) -> subprocess.CompletedProcess[str]:
        return self.cli(
            self.hub, "nats", "init", *words,
            ARRIERO_NATS_URL=f"nats://{(at or self.hub).address}:{NATS_PORT}",
            ARRIERO_NATS_NKEY_FILE=str(self.secrets / "nats-admin.nk"),
        )  # fmt: skip

    def operator(self) -> dict[str, str]:
        return {
            "ARRIERO_AUTH_URL": f"http://{self.hub.address}:8701", "ARRIERO_CLIENT_ID": "operator",
            "ARRIERO_CLIENT_SECRET": (self.secrets / "operator").read_text(),
        }  # fmt: skip

    def create_client(self) -> None:
        made = self.cli(self.client, "client", "create", "tester", "--json", **self.operator())
        assert made.returncode == 0, made.stderr
        self.api_key = json.loads(made.stdout)["api_key"]

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self, name: str, machine: Machine, *command: str, environment: dict[str, str]) -> None:
        self.processes[name] = machine.spawn(*command, environment=environment, log=self.log_file(name))

    def log_file(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def log(self, name: str) -> str:
        return self.log_file(name).read_text()

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(END_S)

    def end(self) -> None:
        """Everything that was started here, and the network; whatever state it is in."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for process in self.processes.values():
            process.wait(END_S)
        self.network.remove()
        shutil.rmtree(self.folder / "store", ignore_errors=True)

    # -- looking -------------------------------------------------------------------------------------------------------

    def look(self, machine: Machine, port: int, path: str) -> httpx.Response | None:
        """From the machine itself, so also when its cable is pulled. None: nobody answers."""
        try:
            return machine.inside(lambda: httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5, verify=False))
        except httpx.HTTPError:
            return None

    def is_ready(self, kind: str, machine: Machine) -> bool:
        answer = self.look(machine, OPS[kind], "/readyz")
        return answer is not None and answer.status_code == 200

    def in_flight(self, machine: Machine) -> int:
        answer = self.look(machine, 11434, "/sim/state")
        assert answer is not None
        return int(answer.json()["in_flight"])

    def nodes(self, liveness: str) -> int:
        """How many the router takes for alive, suspect, dead."""
        answer = self.look(self.hub, OPS["router"], "/metrics")
        assert answer is not None
        (found,) = re.findall(rf'^arriero_router_nodes{{.*"{liveness}".*}} (\S+)$', answer.text, re.MULTILINE)
        return int(float(found))

    def ask(
        self, method: str, path: str, *, gateway: Machine | None = None, machine: Machine | None = None, **more: Any
    ) -> httpx.Response:
        """One request to a gateway (the hub's), from a machine (`client`)."""
        url = f"http://{(gateway or self.hub).address}:8700{path}"
        headers = {"Authorization": f"Bearer {self.api_key}"} | more.pop("headers", {})

        def do() -> httpx.Response:
            return httpx.request(method, url, headers=headers, timeout=40, verify=False, **more)

        return (machine or self.client).inside(do)

    def submit(self, model: str, tokens: int, about: str = "llamas", **more: Any) -> str:
        body = {"model": model, "prompt": f"Tell me about {about}. [[tokens={tokens}]]"}
        answer = self.ask("POST", "/jobs", json=body, **more)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def final(self, job: str, within: int = 30) -> dict[str, Any]:
        view: dict[str, Any] = self.ask("GET", f"/jobs/{job}", params={"wait": within}).json()
        assert view["finished_at"], view
        return view

    def replay(self, job: str, **more: Any) -> list[Sse]:
        return [event for event in parse_sse(self.ask("GET", f"/jobs/{job}/stream", **more).text) if event.id]

    def read(self, job: str, *, gateway: Machine | None = None, machine: Machine | None = None) -> "Reader":
        where = gateway or self.hub
        return Reader(machine or self.client, f"http://{where.address}:8700/jobs/{job}/stream", self.api_key)


class Reader:
    """One open stream of a job, read in a thread of its own; `at` says when each event came (monotonic)."""

    def __init__(self, machine: Machine, url: str, key: str) -> None:
        self.text = ""
        self.at: list[float] = []
        self.error: httpx.HTTPError | None = None
        self._request = (machine, url, {"Authorization": f"Bearer {key}"})
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        machine, url, headers = self._request
        machine.inside(lambda: self._read(url, headers))

    def _read(self, url: str, headers: dict[str, str]) -> None:
        try:
            with httpx.Client(timeout=60, verify=False) as client, client.stream("GET", url, headers=headers) as answer:
                for piece in answer.iter_text():
                    self.text += piece
                    self.at += [time.monotonic()] * piece.count("\n\n")
        except httpx.HTTPError as error:
            self.error = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    @property
    def events(self) -> list[Sse]:
        """Whole ones, without comments."""
        return parse_sse(self.text[: self.text.rfind("\n\n") + 2])

    @property
    def tokens(self) -> int:
        return self.text.count("event: token\n")

    @property
    def shown(self) -> str:
        """The bytes of everything with an id: what a resuming client has already."""
        return "".join(event.raw for event in self.events if event.id)

    def longest_pause(self) -> float:
        return max(later - earlier for earlier, later in zip(self.at, self.at[1:], strict=False))
