"""The cheapest possible GET: while everything starts, a full HTTP client would cost more than what it asks."""

import asyncio
import contextlib
import ssl
from urllib.parse import urlsplit

MAX_BODY = 4 << 20


async def get(url: str, *, timeout: float = 1.0) -> tuple[int, bytes] | None:
    """(status, body) of one HTTP/1.0 GET; None when nobody answers in time, or not in HTTP."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout):
            context = ssl.create_default_context() if secure else None
            reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context, limit=MAX_BODY)
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            body = bytearray()
            while piece := await reader.read(65536):
                body += piece
                if len(body) > MAX_BODY:
                    return None
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, UnicodeError, ValueError):
        return None
    finally:
        if writer:
            writer.transport.abort()  # nothing of ours is left to send
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    try:
        return int(head.split(b" ", 2)[1]), bytes(body)
    except (IndexError, ValueError):
        return None
