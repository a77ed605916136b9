"""Carries out the plan of faults, and watches the fleet from outside meanwhile."""

import asyncio
import contextlib
import json
import signal
from typing import Any

import aiohttp

from libs.common.bus.failures import BusError
from tests.faults.fleet import HOLDINGS, HOST, Fleet
from tests.faults.plan import CABLE, Deed, Strike
from tests.faults.records import Book

LOOK_S = 0.5
REST_LOOK_S = 0.5


class Breaker:
    """One fault at a time per process; one NATS server at a time, and never every node at once: that is another test."""

    def __init__(self, fleet: Fleet, book: Book) -> None:
        self._fleet, self._book = fleet, book
        self._busy: set[str] = set()

    async def carry_out(self, strikes: list[Strike]) -> None:
        async with asyncio.TaskGroup() as group:
            for strike in sorted(strikes, key=lambda s: s.at_s):
                await asyncio.sleep(max(0.0, strike.at_s - self._book.now))
                group.create_task(self._strike(strike))

    async def _strike(self, strike: Strike) -> None:
        target = await self._fleet.leader() if strike.target == "nats:leader" else strike.target
        while (free := self._allowed(strike, target)) is None:
            await asyncio.sleep(0.1)
        target = free
        self._busy.add(target)
        facts = {"id": strike.id, "role": strike.role, "kind": strike.kind, "target": target, "seconds": strike.seconds}
        self._book.note("fault", phase="begun", **facts)
        try:
            await self._do(strike, target)
        finally:
            self._busy.discard(target)
            self._book.note("fault", phase="over", **facts)

    def _allowed(self, strike: Strike, target: str) -> str | None:
        """The process to strike now, or None: wait."""
        if strike.role == "nats":
            return None if any(name in self._busy for name in self._fleet.nats) else target
        if strike.deed is Deed.SIM:
            return target
        candidates = [target, *(name for name in self._fleet.names[strike.role] if name != target)]
        for name in candidates:
            struck = self._fleet.processes[self._fleet.cable_of(name) if strike.deed in CABLE else name]
            if name in self._busy or not struck.ready.is_set():
                continue
            if strike.role in ("worker", "sim") and not self._spares_a_node(name.partition("-")[2]):
                continue
            return name
        return None

    def _spares_a_node(self, node: str) -> bool:
        return any(other != node and not {f"worker-{other}", f"sim-{other}"} & self._busy for other in HOLDINGS)

    async def _do(self, strike: Strike, target: str) -> None:
        process = self._fleet.processes[self._fleet.cable_of(target) if strike.deed in CABLE else target]
        match strike.deed:
            case Deed.KILL | Deed.DROP:
                await process.strike(signal.SIGKILL, down_for=strike.seconds)
            case Deed.TERM:
                await process.strike(signal.SIGTERM, down_for=min(strike.seconds, 1.0))
            case Deed.STOP | Deed.CUT:
                await process.freeze(strike.seconds)
            case Deed.SIM:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                    url = f"http://{HOST}:{self._fleet.sim_ports[target]}/sim/faults"
                    timeout = aiohttp.ClientTimeout(total=2)
                    async with self._fleet.http.post(url, json=[dict(strike.sim)], timeout=timeout):
                        pass


async def watch_readiness(fleet: Fleet, book: Book) -> None:
    """Endless: what every service says of itself. One that is frozen or gone cannot be asked."""

    async def look(name: str, port: int) -> None:
        process = fleet.processes[name]
        if process.pid is None or process.stopped:
            return
        sent, status, problems = book.now, 0, ""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            timeout = aiohttp.ClientTimeout(total=2)
            async with fleet.http.get(f"http://{HOST}:{port}/readyz", timeout=timeout) as answer:
                status, problems = answer.status, await answer.text()
        if not process.stopped:
            book.note("readyz", name=name, sent=sent, status=status, problems=problems if status != 200 else "")

    while True:
        await asyncio.gather(asyncio.sleep(LOOK_S), *(look(name, port) for name, port in fleet.ops_ports.items()))


async def come_to_rest(fleet: Fleet, book: Book, *, within: float) -> None:
    """Wait until nothing is held anywhere; then, or when the time is over, note what is."""
    held: dict[str, Any] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            while True:
                held = await _held(fleet)
                if not any(held.values()):
                    break
                await asyncio.sleep(REST_LOOK_S)
    for place, what in held.items():
        book.note("quiet", place=place, held=what)


async def _held(fleet: Fleet) -> dict[str, Any]:
    held: dict[str, Any] = {}
    for name, port in fleet.ops_ports.items():
        held[f"readiness of {name}"] = await _unready(fleet, port)
    try:
        beats = await fleet.told_by_nodes()
    except BusError as error:
        return {"heartbeats": str(error)}
    for node in HOLDINGS:
        beat = beats.get(node)
        held[f"heartbeat of {node}"] = "no heartbeat" if beat is None else beat.get("running", [])
    for name, port in fleet.sim_ports.items():
        held[name] = await _in_flight(fleet, port)
    held["routers"] = await _jobs_of_routers(fleet)
    return held


async def _unready(fleet: Fleet, port: int) -> str:
    try:
        async with fleet.http.get(f"http://{HOST}:{port}/readyz", timeout=aiohttp.ClientTimeout(total=2)) as answer:
            return "" if answer.status == 200 else await answer.text()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return repr(error)


async def _in_flight(fleet: Fleet, port: int) -> Any:
    try:
        async with fleet.http.get(f"http://{HOST}:{port}/sim/state", timeout=aiohttp.ClientTimeout(total=2)) as answer:
            return (await answer.json())["in_flight"]
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return repr(error)


async def _jobs_of_routers(fleet: Fleet) -> Any:
    """Unfinished jobs by the gauges of whoever is active."""
    active: list[float] = []
    for name in ("router-1", "router-2"):
        try:
            url = f"http://{HOST}:{fleet.ops_ports[name]}/metrics"
            async with fleet.http.get(url, timeout=aiohttp.ClientTimeout(total=2)) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return repr(error)
        values = {k: float(v) for k, _, v in (line.rpartition(" ") for line in text.splitlines() if line[:1] != "#")}
        if values.get("arriero_router_active"):
            active.append(sum(v for k, v in values.items() if k.startswith("arriero_router_jobs{")))
    return sum(active) if len(active) == 1 else f"{len(active)} active routers"


def note_logs(fleet: Fleet, book: Book) -> None:
    """Who says to have ended which job; and every error that a service logged, for the report."""
    for name in fleet.ops_ports:
        for line in fleet.processes[name].output.read_text(errors="replace").splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if not isinstance(said, dict):
                continue
            if said.get("event") == "job.ended":
                book.note("logged", process=name, job=said["job_id"], epoch=said["epoch"], state=said["state"])
            elif said.get("level") in ("error", "critical"):
                book.note("complained", process=name, event=said["event"], text=line[:2000])
