"""`GET /audit` over HTTP; `trail` has its parameters."""

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from libs.common.contracts.clients import Scope
from services.auth.authorization import Authorization
from services.auth.trail import AuditTrail, read_query


class TrailRoutes:
    def __init__(self, authorization: Authorization, trail: AuditTrail) -> None:
        self._authorization = authorization
        self._trail = trail

    @property
    def routes(self) -> list[Route]:
        return [Route("/audit", self.read, methods=["GET"])]

    async def read(self, request: Request) -> Response:
        self._authorization.require(request, Scope.AUDIT_READ)
        lines = await self._trail.page(read_query(request.query_params))
        return StreamingResponse(lines, media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})
