"""Waiting for what a drain has to let end, but no longer than somebody has patience."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def ended(work: Coroutine[Any, Any, object], seconds: float, hurry: asyncio.Event | None = None) -> bool:
    """Whether `work` was done within that time, and before `hurry` was set; else it is cancelled."""
    waits = [asyncio.ensure_future(work), *([asyncio.ensure_future(hurry.wait())] if hurry else [])]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return waits[0].done()
    finally:
        for wait in waits:
            wait.cancel()
