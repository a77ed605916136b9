"""Reading a request's body up to a limit; what is counted is what arrives, because Content-Length may be absent or wrong."""

from starlette.requests import Request

from libs.common.contracts.faults import Code, failed

MAX_BODY = 64 * 1024


async def read_body(request: Request) -> bytes:
    """Raises Failed (TOO_LARGE)."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise failed(Code.TOO_LARGE, f"A request to this service has at most {MAX_BODY} bytes.")
        parts.append(part)
    return b"".join(parts)
