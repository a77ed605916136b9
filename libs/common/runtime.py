"""One way to start, run, drain and stop for all services.

`run(service)`: settings are loaded, then logs → bus → the service's own resources → tasks and HTTP ports → ready. On SIGTERM,
SIGINT, a failed task or a lost NATS connection: not ready → `drain` (stop intake, wait for work in flight up to the grace,
end the rest) → ports closed → tasks cancelled → resources left in reverse → exit 0, or 1 if a failure began it. A second
signal skips the waiting: a service that has something to hand over is told to `hurry` and gets a few seconds for that, the
others end. A third one skips that, too. A signal during the start ends the start.
"""

import argparse
import asyncio
import contextlib
import errno
import functools
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Generic, TypeVar

import structlog
import uvicorn
import uvloop

from libs.common import logs, settings
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.provision import drift, lacking
from libs.common.contracts.permissions import compared_by
from libs.common.edge import Edge, HttpLimits
from libs.common.edge.front import Front
from libs.common.edge.protocol import EdgeProtocol
from libs.common.edge.table import ConnectionTable
from libs.common.ops import Check, OpsApp
from libs.common.settings import ServiceSettings

log = structlog.get_logger()

S = TypeVar("S", bound=ServiceSettings)
Shutdown = Callable[[], Coroutine[Any, Any, None]]
DRIFT_RETRY_S = 2.0
DRAIN_SLACK_S = 10.0  # beyond the grace, or after a second signal, for a drain to end what is left
CLOSE_GRACE_S = 2  # for connections that are still open after the drain
HEAR_OUT_S = 0.5  # for connections that were accepted and have not yet asked anything when a port is closed
END_GRACE_S = 5.0  # for tasks to end once they are cancelled
OPS_EDGE = Edge(HttpLimits(max_connections=1000))
FILES_BESIDE = 200  # that a process needs besides its connections


@dataclass
class Port:
    """An HTTP port of its own besides the ops port."""

    app: Any
    host: str
    port: int
    edge: Edge = field(default_factory=Edge)


@dataclass
class Running:
    """What a service's `start` yields: its endless tasks, its ports, its readiness checks, and how it drains.

    `hurry` tells a drain that is under way to wait for nothing any more; without it a second signal ends the drain.
    """

    tasks: dict[str, Coroutine[Any, Any, None]] = field(default_factory=dict)
    ports: list[Port] = field(default_factory=list)
    checks: dict[str, Check] = field(default_factory=dict)
    drain: Shutdown | None = None
    hurry: Callable[[], None] | None = None


@dataclass(frozen=True)
class Service(Generic[S]):
    name: str
    about: str
    settings: type[S]
    start: Callable[[S, Bus], AbstractAsyncContextManager[Running]]


def main(service: Service[Any], argv: list[str] | None = None) -> None:
    """The whole `main()` of a service; ends the process."""
    parser = argparse.ArgumentParser(
        prog=f"arriero-{service.name}",
        description=service.about,
        epilog=_help_settings(service.settings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="print the effective settings, secrets redacted, and exit")
    parser.add_argument("--version", action="version", version=f"arriero {version('arriero')}")
    for name, info in service.settings.model_fields.items():
        if (info.json_schema_extra or {}).get("flag"):
            parser.add_argument(f"--{name.replace('_', '-')}", dest=name, default=None, help=info.description)
    given = vars(parser.parse_args(argv))
    check = given.pop("check")
    effective = settings.load(service.settings, **given)
    if check:
        print(settings.show(effective))
        sys.exit(0)
    logs.configure(service.name, effective.log_level)
    sys.exit(uvloop.run(_run(service, effective)))


def _help_settings(declared: type[ServiceSettings]) -> str:
    prefix = str(declared.model_config.get("env_prefix", ""))
    lines = ["environment (a secret can also be given as …_FILE):"]
    for name, info in declared.model_fields.items():
        default = "" if info.is_required() else f" [{info.get_default(call_default_factory=True)}]"
        lines.append(f"  {prefix}{name.upper()}\n      {info.description or ''}{default}")
    return "\n".join(lines)


async def _run(service: Service[S], effective: S) -> int:
    log.info("service.starting", version=version("arriero"), pid=os.getpid(), settings=effective.redacted())
    state = _State(asyncio.current_task())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, state.ask)
    bus = Bus(effective.nats_user)
    try:
        await bus.open(
            effective.nats_servers,
            password=effective.nats_password.get_secret_value(),
            nkey_seed=effective.nats_nkey.get_secret_value(),
            tls=effective.nats_tls,
            name=f"arriero-{service.name}",
        )
        async with service.start(effective, bus) as running:
            return await _serve(service.name, effective, bus, running, state)
    except (StartFailed, BusError) as error:
        log.error("service.start_failed", error=str(error))
        print(f"arriero-{service.name}: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        if not state.interrupted:
            raise
        return 0
    finally:
        await bus.close()
        log.info("service.stopped")


class StartFailed(Exception):
    """Raised in a service's `start` for what a human has to mend; the text is the one sentence shown."""


class _State:
    def __init__(self, starting: "asyncio.Task[Any] | None" = None) -> None:
        self.starting = starting  # until it serves, a signal cancels it
        self.interrupted = False
        self.stopping = asyncio.Event()
        self.hurrying = asyncio.Event()
        self.insisting = asyncio.Event()
        self.failed = False
        self.drift: list[str] | None = None

    def ask(self) -> None:
        if self.starting:
            self.interrupted = True
            self.starting.cancel()
            return
        for step in (self.stopping, self.hurrying, self.insisting):
            if not step.is_set():
                step.set()
                return

    def fail(self) -> None:
        self.failed = True
        self.stopping.set()


async def _serve(name: str, effective: ServiceSettings, bus: Bus, running: Running, state: _State) -> int:
    checks: dict[str, Check] = {
        "draining": lambda: "shutting down" if state.stopping.is_set() else None,
        "nats": lambda: None if bus.connected else "not connected to NATS",
        "streams": lambda: None if state.drift == [] else "; ".join(state.drift or ["not compared yet"]),
        **running.checks,
    }
    ops = Port(OpsApp(name, checks), effective.ops_host, effective.ops_port, OPS_EDGE)
    sockets: list[list[socket.socket]] = []
    try:
        for port in [ops, *running.ports]:
            sockets.append(_bind(port))
    except StartFailed:
        for bound in sockets:
            _close(bound)
        for coroutine in running.tasks.values():
            coroutine.close()
        raise
    state.starting = None
    _allow_files(sum(port.edge.limits.max_connections for port in [ops, *running.ports]) + FILES_BESIDE)
    servers = [_Server(port) for port in [ops, *running.ports]]
    background = {
        **{f"{name}.{task}": coroutine for task, coroutine in running.tasks.items()},
        "runtime.drift": _watch_drift(bus, compared_by(name), state),
        "runtime.lost": _watch_lost(bus, state),
    }
    tasks = [asyncio.create_task(_guard(task, coroutine, state), name=task) for task, coroutine in background.items()]
    serving = [
        asyncio.create_task(_guard("http", server.serve(bound), state))
        for server, bound in zip(servers, sockets, strict=True)
    ]
    log.info("service.started", ops=_address(sockets[0]), ports=[_address(bound) for bound in sockets[1:]])
    await state.stopping.wait()
    log.info("service.draining", failed=state.failed)
    if running.drain and not state.failed:
        draining = asyncio.create_task(_guard("drain", running.drain(), state), name="drain")
        signalled = await _until(draining, state.hurrying, effective.drain_grace + DRAIN_SLACK_S)
        if signalled and running.hurry:
            log.info("service.hurrying")
            running.hurry()
            await _until(draining, state.insisting, DRAIN_SLACK_S)
        await _end([draining])
    for server in servers:
        server.should_exit = True
    await asyncio.wait(serving, timeout=HEAR_OUT_S + CLOSE_GRACE_S + 1)
    await _end([*tasks, *serving])
    return 1 if state.failed else 0


async def _until(task: asyncio.Task[Any], signalled: asyncio.Event, seconds: float) -> bool:
    """Until the task is done, the time is over, or a signal came; was it that?"""
    signal_came = asyncio.create_task(signalled.wait())
    await asyncio.wait([task, signal_came], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    signal_came.cancel()
    return signalled.is_set() and not task.done()


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    _, left = await asyncio.wait(tasks, timeout=END_GRACE_S)
    for task in left:  # something swallowed the cancellation; the end of the loop cancels it once more
        log.error("task.would_not_end", task=task.get_name())


def _bind(port: Port) -> list[socket.socket]:
    """Bound before anything runs, so that a taken port is one sentence. Raises StartFailed."""
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(
            socket.getaddrinfo(port.host or None, port.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ):
            made = socket.socket(family, kind, protocol)
            bound.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind(address)
            made.listen(0)  # Linux refuses the second of two only here; uvicorn sets the true backlog
    except OSError as error:
        _close(bound)
        why = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror
        raise StartFailed(f"cannot listen on {port.host}:{port.port}: {why}") from error
    return bound


def _allow_files(wanted: int) -> None:
    """As many open files as the operating system lets us have: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, possible), hard))
    if possible < wanted:
        log.warning("service.files_limited", wanted=wanted, possible=max(soft, possible))


def _close(sockets: list[socket.socket]) -> None:
    for made in sockets:
        made.close()


def _address(sockets: list[socket.socket]) -> str:
    host, port = sockets[0].getsockname()[:2]
    return f"{host}:{port}"


async def _guard(name: str, coroutine: Coroutine[Any, Any, None], state: _State) -> None:
    """A task that ends with an error takes the service down: a process that is up but does nothing is worse."""
    try:
        await coroutine
    except asyncio.CancelledError:
        raise
    except SystemExit as error:  # uvicorn, when its port is taken
        state.fail()
        log.error("task.failed", task=name, error=f"exit {error.code}")
    except Exception:
        state.fail()  # first: a log that cannot be written must not keep a dead service up
        log.exception("task.failed", task=name)


async def _watch_drift(bus: Bus, streams: frozenset[str], state: _State) -> None:
    """Compares the streams that this service uses until they are as declared, and again after every reconnect."""
    compared_at = 0
    while True:
        if state.drift != [] or compared_at != bus.connections:
            connections = bus.connections
            with contextlib.suppress(BusError):
                found = [*await lacking(bus), *await drift(bus, streams)]
                if found != state.drift and found:
                    log.error("streams.differ", differences=found)
                state.drift, compared_at = found, connections
        await asyncio.sleep(DRIFT_RETRY_S if state.drift else 0.2 if state.drift is None else 1)


async def _watch_lost(bus: Bus, state: _State) -> None:
    await bus.lost.wait()
    log.error("bus.lost", action="exiting")
    state.fail()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: it would close before streams have been told (architecture-models.md §3.8)."""

    def __init__(self, port: Port) -> None:
        table = ConnectionTable(port.edge.limits, port.edge.rules.proxies, str(port.port))
        super().__init__(
            uvicorn.Config(
                Front(port.app, port.edge.rules),
                host=port.host,
                port=port.port,
                http=functools.partial(EdgeProtocol, table=table),  # type: ignore[arg-type]  # uvicorn calls it as a class
                ws="none",
                reset_contextvars=True,  # or a request would log what another one has bound
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                proxy_headers=False,  # it would trust whatever comes from 127.0.0.1; the edge knows our proxies
                date_header=True,
                timeout_keep_alive=int(port.edge.limits.keep_alive),
                timeout_graceful_shutdown=CLOSE_GRACE_S,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]  # uvicorn's own is a generator of its own type
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn closes at once what was accepted and has not yet asked anything: a reset for a request on its way. First
        nothing new is accepted, then those who have just come may ask."""
        for server in self.servers:
            server.close()
        give_up = time.monotonic() + HEAR_OUT_S
        while time.monotonic() < give_up and any(map(_said_nothing, self.server_state.connections)):  # noqa: ASYNC110  # uvicorn tells nobody
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)


def _said_nothing(connection: Any) -> bool:
    return connection.cycle is None and not connection.transport.is_closing()
