"""`arriero status`: each process of the running stack, ready or not, and why."""

import asyncio
from urllib.parse import urlsplit

import msgspec
import typer

from libs.cli.failures import CommandFailed
from libs.cli.home import Home, UpFile
from libs.cli.output import Json, show, table
from libs.cli.up import probe
from libs.cli.up.leftovers import trace
from libs.cli.up.supervisor import why_not_ready


class State(msgspec.Struct, frozen=True):
    """`ready` None: it has no ops port, so only being alive is known."""

    process: str
    pid: int
    alive: bool
    ready: bool | None
    why: str = ""

    @property
    def word(self) -> str:
        if not self.alive:
            return "gone"
        return {True: "ready", False: "not ready", None: "runs"}[self.ready]


def status(as_json: Json = False) -> None:
    """Each process of the running stack: ready or not, and why. Ends with 1 when one is not."""
    from libs.cli.whereabouts import START_IT, up_file

    home = Home.here()
    up = up_file(home)
    if up is None:
        raise CommandFailed(f"no Arriero runs with home {home.path}: {START_IT}", code="not_running")
    states = asyncio.run(_states(up))
    if not any(state.alive for state in states):
        raise CommandFailed(
            f"Arriero does not run: {home.up_json} is what a run left that was cut off; {START_IT}", code="not_running"
        )
    rows = [(state.process, state.pid, state.word, state.why) for state in states]
    urls = {"gateway": up.gateway, "auth": up.auth, "nats": up.nats}
    text = "\n".join(f"{name:<8} {url}" for name, url in urls.items())
    show(
        {**urls, "processes": [msgspec.to_builtins(state) for state in states]},
        f"{text}\n\n{table(rows, ('PROCESS', 'PID', 'STATE', ''))}",
    )
    if any(not state.alive or state.ready is False for state in states):
        raise typer.Exit(1)


async def _states(up: UpFile) -> list[State]:
    checks = {name: f"{url}/readyz" for name, url in up.ops.items()}
    nats = urlsplit(up.nats)
    checks["nats"] = f"http://{nats.hostname}:{(nats.port or 0) + 1}/healthz"  # the monitor's place in the port plan
    return list(await asyncio.gather(*(_state(name, pid, checks.get(name)) for name, pid in up.pids.items())))


async def _state(name: str, pid: int, check: str | None) -> State:
    alive = trace(pid) is not None
    if not alive or check is None:
        return State(name, pid, alive, None)
    answer = await probe.get(check, timeout=2.0)
    ready = answer is not None and answer[0] == 200
    return State(name, pid, alive, ready, "" if ready else why_not_ready(answer))
