"""The router: decides which node runs which job, and when. Run several; one is active."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.common import runtime
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.follower import Follower
from libs.common.bus.link import Subscription
from libs.common.contracts import subjects
from libs.common.contracts.streams import MODELS, NODES, key_subject
from libs.common.ids import new_boot_id
from libs.common.runtime import Running, Service
from services.router.clock import ServerClock
from services.router.lease import Lease
from services.router.loop import Router
from services.router.rebuild import Rebuild
from services.router.settings import RouterSettings


@asynccontextmanager
async def start(settings: RouterSettings, bus: Bus) -> AsyncIterator[Running]:
    serving: list[Subscription] = []
    was_active = False

    async def on_lease(active: bool) -> None:
        """Only the active router is spoken to."""
        nonlocal was_active
        if active and was_active:
            router.regained_at = time.monotonic()
        was_active = was_active or active
        if active and not serving:
            serving.append(await bus.subscribe(subjects.router("free"), router.intake.on_free))
            serving.append(await bus.serve(subjects.router("place"), router.enquiries.place))
            serving.append(await bus.serve(subjects.router("quote"), router.enquiries.quote))
            serving.append(await bus.serve(subjects.router("erase"), router.erase))
        while not active and serving:
            await serving.pop().stop()

    lease = Lease(bus, new_boot_id(), on_lease)
    clock = ServerClock()
    last = await clock.look(bus)
    router = Router(bus, clock, is_active=lambda: lease.active and rebuild.complete)
    rebuild = Rebuild(bus, router.index, router.intake.on_record, router.reset, last)
    nodes = Follower(bus, f"KV_{NODES}", [key_subject(NODES, "*")], router.intake.on_node_record)
    catalog = Follower(
        bus, f"KV_{MODELS}", [key_subject(MODELS, ">")], router.intake.on_catalog_record,
        on_reset=router.scheduler.pricing.catalog.clear,
    )  # fmt: skip
    heartbeats = await bus.subscribe(key_subject(NODES, "*"), router.intake.on_heartbeat)

    async def drain() -> None:
        with contextlib.suppress(BusError):
            await lease.release()
        await asyncio.sleep(0)

    try:
        yield Running(
            tasks={
                **{f"follow.{name}": task for name, task in rebuild.jobs.tasks().items()},
                "rebuild": rebuild.run(),
                "follow.nodes": nodes.run(),
                "follow.models": catalog.run(),
                "lease": lease.run(),
                "loop": router.run(),
                "pings": router.pings.run(),
                "clock": clock.keep(bus),
            },
            checks={
                "lease": lease.problem,
                "rebuild": rebuild.problem,
                **{f"follow.{name}": problem for name, problem in rebuild.jobs.problems().items()},
                "follow.nodes": nodes.problem,
                "follow.models": catalog.problem,
            },
            drain=drain,
        )
    finally:
        await heartbeats.stop()
        for subscription in serving:
            await subscription.stop()


SERVICE = Service(
    name="router",
    about="Decides which node runs which job. Run several: one is active, the others stand by.",
    settings=RouterSettings,
    start=start,
)


def main() -> None:
    runtime.main(SERVICE)
