"""`GET /audit` over HTTP; `trail` has its parameters."""

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from libs.common.contracts.clients import Scope
from services.auth import operations
from services.auth.routes import RouteSpec
from services.auth.trail import AuditTrail, read_query


class TrailRoutes:
    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail

    @property
    def routes(self) -> list[RouteSpec]:
        return [RouteSpec("GET", "/audit", Scope.AUDIT_READ, self.read, operations.AUDIT)]

    async def read(self, request: Request, actor: str) -> Response:
        lines = await self._trail.page(read_query(request.query_params))
        return StreamingResponse(lines, media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})
