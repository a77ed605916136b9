"""Answers in JSON that nobody may keep."""

from typing import Any

import msgspec
from starlette.responses import Response


def json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, {"Cache-Control": "no-store"}, media_type="application/json")
