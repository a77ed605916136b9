"""The worker: the process beside one Ollama that runs jobs on it and streams their tokens back over NATS."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from libs.common import runtime
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.contracts import subjects
from libs.common.draining import ended
from libs.common.ids import new_boot_id
from libs.common.journal import Journal
from libs.common.runtime import Running, Service, StartFailed
from services.worker import metrics
from services.worker.canary import Canary
from services.worker.clock import ServerClock
from services.worker.endings import StopReason
from services.worker.health import Health
from services.worker.memory import Memory
from services.worker.model_work import ModelDesk
from services.worker.ollama import Ollama
from services.worker.presence import CUT_OFF_S, Inventory, Presence
from services.worker.run import Node
from services.worker.runs import Runs
from services.worker.settings import WorkerSettings
from services.worker.vram import vram_of

log = structlog.get_logger()

SAY_SO_S = 1.0
GIVE_BACK_S = 9.0  # after the grace or a second signal, for what is still running to be handed over


@asynccontextmanager
async def start(settings: WorkerSettings, bus: Bus) -> AsyncIterator[Running]:
    boot = new_boot_id()
    ollama = Ollama(settings.node_url, connections=settings.slots)
    clock = ServerClock()
    health = Health()
    inventory = Inventory(ollama, health)
    health.on_change = inventory.changed.set
    desk = ModelDesk(ollama, inventory, lambda: runs.models(), patience=settings.patience)
    node = Node(
        settings.node, boot, bus, Journal(bus), ollama, clock, Memory(), health, inventory.in_memory, settings.patience,
        inventory.answers, desk.make_room,
    )  # fmt: skip
    runs = Runs(node, settings.slots)
    vram = await vram_of(settings.vram, settings.node_url)
    presence = Presence(bus, clock, inventory, health, runs, node=settings.node, boot=boot, vram=vram)
    canary = Canary(ollama, inventory, health, patience=settings.patience)
    metrics.slots.set(settings.slots)
    try:
        problem = await presence.refuse_company()
    except BusError as error:
        problem = f"cannot see whether another worker serves node {settings.node}: {error}"
    if problem is not None:
        await ollama.close()
        raise StartFailed(problem)
    subscriptions = [
        await bus.serve(subjects.worker(settings.node, boot, "run"), runs.run),
        await bus.serve(subjects.worker(settings.node, boot, "cancel"), runs.cancel),
        await bus.serve(subjects.worker(settings.node, boot, "read"), runs.read),
        await bus.serve(subjects.worker(settings.node, boot, "model"), desk.answer),
        await bus.serve(subjects.worker(settings.node, boot, "ping"), runs.ping),
        await presence.watch_namesakes(),
    ]

    hurry = asyncio.Event()

    async def drain() -> None:
        """Nothing new; what runs goes on for the grace, or until somebody is in a hurry, and is then handed over."""
        runs.draining = True
        with contextlib.suppress(BusError, TimeoutError):  # without NATS the runs are waited for all the same
            async with asyncio.timeout(SAY_SO_S):
                await presence.say()
        if await ended(runs.idle(), settings.drain_grace, hurry):
            return
        runs.stop_all(StopReason.DRAIN, "the worker is shutting down")
        if not await ended(runs.idle(), GIVE_BACK_S):
            log.warning("drain.unfinished", running=len(runs))

    try:
        yield Running(
            tasks={
                "inventory": inventory.watch(),
                "presence": presence.keep_saying(),
                "canary": canary.watch(),
                "namesakes": _stop_when_replaced(presence),
                "cut_off": _stop_runs_when_cut_off(presence, runs),
            },
            checks={"node": presence.problem},
            drain=drain,
            hurry=hurry.set,
        )
    finally:
        for subscription in subscriptions:
            await subscription.stop()
        await runs.close()
        await desk.close()
        await ollama.close()


async def _stop_when_replaced(presence: Presence) -> None:
    await presence.replaced.wait()
    raise RuntimeError("a newer worker serves this node; this one stops")


async def _stop_runs_when_cut_off(presence: Presence, runs: Runs) -> None:
    """What a node does that nobody hears of counts for nothing unless its binding still holds; it must not burn a GPU for it."""
    while True:
        await asyncio.sleep(1)
        if presence.cut_off_for() > CUT_OFF_S and len(runs):
            runs.stop_all(StopReason.CUT_OFF, "NATS is away")


SERVICE = Service(
    name="worker",
    about="Runs jobs on one Ollama and streams their tokens over NATS.",
    settings=WorkerSettings,
    start=start,
)


def main() -> None:
    runtime.main(SERVICE)
