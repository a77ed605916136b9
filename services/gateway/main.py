"""The gateway: HTTP in, durable jobs out, tokens back. Any number of them; none holds anything that another needs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.common import runtime
from libs.common.audit import Audit
from libs.common.bus.connection import Bus
from libs.common.credentials.failure_log import FailureLog
from libs.common.credentials.failures import Rate
from libs.common.draining import ended
from libs.common.ids import new_boot_id
from libs.common.runtime import Port, Running, Service
from services.gateway.app import create_app
from services.gateway.catalog import Catalog
from services.gateway.credentials import Credentials
from services.gateway.fleet import FleetView
from services.gateway.intake import Intake
from services.gateway.internal import InternalApi
from services.gateway.job_service import JobService
from services.gateway.limits import Limiter
from services.gateway.pressure import Pressure
from services.gateway.revoking import Revoking
from services.gateway.routes import all_routes
from services.gateway.sessions import Sessions
from services.gateway.settings import GatewaySettings
from services.gateway.streaming import Streams
from services.gateway.submission import Submitter
from services.gateway.warm_up import WarmUp
from services.gateway.webhooks import Delivering, Sender, Waiting, WebhookRegistry, Webhooks
from services.gateway.witness import Witness

GOODBYE_S = 3.0  # for streams to write their last frame once they have been ended


@asynccontextmanager
async def start(settings: GatewaySettings, bus: Bus) -> AsyncIterator[Running]:
    secret = settings.cluster_secret.get_secret_value().encode()
    rate = Rate(settings.address_failures)
    credentials = Credentials(
        bus,
        issuer=settings.issuer,
        jwks_url=settings.jwks_url,
        cluster_secret=secret,
        failures=FailureLog(bus, secret, address_rate=rate) if rate.per_minute else None,
    )
    fleet, pressure = FleetView(bus), Pressure(bus)
    catalog = Catalog(bus)
    submitter = Submitter(bus, secret, pressure)
    limiter = Limiter(
        bus, submitter.keyed, output_tokens=settings.output_tokens, bytes_per_token=settings.bytes_per_token
    )
    streams = Streams(limiter)
    registry = WebhookRegistry(bus, secret)
    delivering = Delivering(bus, registry, credentials, Sender(settings.named_networks))
    waiting = Waiting(bus, registry)
    webhooks = Webhooks(registry, delivering, settings.named_networks)
    service = JobService(bus, fleet, catalog, submitter, limiter, webhooks, max_num_ctx=settings.max_num_ctx)
    intake = Intake(settings.max_body)
    sessions = Sessions()
    audit = Audit(bus, "gateway", new_boot_id())
    witness = Witness(audit)
    warm_up = WarmUp([*(credentials.checks()[name] for name in ("clients", "revocations")), fleet.follower.problem])
    specs = all_routes(bus, service, streams, intake, fleet, catalog, issuer=settings.issuer)
    internal = await InternalApi(bus, credentials, sessions, service, intake, limiter, witness).serve()

    hurry = asyncio.Event()

    async def drain() -> None:
        """No new jobs; open streams go on for the grace, or until somebody is in a hurry, then end so that they can be resumed
        elsewhere."""
        pressure.draining = True
        await internal.stop()
        await ended(streams.all_closed(), settings.drain_grace, hurry)
        streams.end_all()
        await ended(streams.all_closed(), GOODBYE_S)
        await asyncio.gather(*(puller.stop(GOODBYE_S) for puller in (waiting.puller, delivering.puller)))
        await audit.close()

    try:
        yield Running(
            tasks={
                "credentials": credentials.run(),
                "revoking": Revoking(credentials, sessions, service).run(),
                "fleet": fleet.follower.run(),
                "catalog": catalog.follower.run(),
                "pressure": pressure.watch(),
                "warm_up": warm_up.run(),
                "limits": limiter.run(),
                "audit": audit.run(),
                "webhooks.waiting": waiting.run(),
                "webhooks.delivering": delivering.puller.run(),
            },
            ports=[
                Port(
                    create_app(
                        specs,
                        credentials,
                        sessions,
                        closing=lambda: pressure.draining,
                        warm_up=warm_up,
                        limiter=limiter,
                        witness=witness,
                    ),
                    settings.host,
                    settings.port,
                    settings.edge(settings.issuer),
                )
            ],
            checks={
                **credentials.checks(),
                "fleet": fleet.follower.problem,
                "catalog": catalog.follower.problem,
                "audit": audit.check,
            },
            drain=drain,
            hurry=hurry.set,
        )
    finally:
        await internal.stop()


SERVICE = Service(
    name="gateway",
    about="The HTTP door: turns requests into durable jobs and streams their tokens back.",
    settings=GatewaySettings,
    start=start,
)


def main() -> None:
    runtime.main(SERVICE)
