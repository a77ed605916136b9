"""All routes of a gateway, as data. docs/authorization.md has the same as a table; what is not here is not served."""

from libs.common.bus.connection import Bus
from services.gateway.catalog import Catalog
from services.gateway.fleet import FleetView
from services.gateway.fleet_routes import FleetRoutes
from services.gateway.intake import Intake
from services.gateway.job_service import JobService
from services.gateway.jobs_routes import JobsRoutes
from services.gateway.models_routes import ModelsRoutes
from services.gateway.openai_routes import OpenAiRoutes
from services.gateway.openapi import OpenApi
from services.gateway.route import RouteSpec
from services.gateway.streaming import Streams
from services.gateway.webhooks_routes import WebhooksRoutes


def all_routes(
    bus: Bus,
    service: JobService,
    streams: Streams,
    intake: Intake,
    fleet: FleetView,
    catalog: Catalog,
    *,
    issuer: str = "",
) -> list[RouteSpec]:
    routes = [
        *JobsRoutes(service, streams, intake).routes(),
        *WebhooksRoutes(service).routes(),
        *OpenAiRoutes(service, streams, intake).routes(),
        *FleetRoutes(bus, fleet, catalog, streams).routes(),
        *ModelsRoutes(fleet, catalog).routes(),
    ]
    return [*routes, OpenApi(routes, issuer).spec]
