"""The only polling helpers of the tests."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def eventually(predicate: Callable[[], Any], within: float = 20.0, every: float = 0.01) -> Any:
    """The first truthy value of `predicate` (plain or async); AssertionError after `within` seconds: far more than it ever
    takes, so that a busy machine fails nothing."""
    last: Any = None
    try:
        async with asyncio.timeout(within):
            while True:
                last = predicate()
                if inspect.isawaitable(last):
                    last = await last
                if last:
                    return last
                await asyncio.sleep(every)
    except TimeoutError:
        raise AssertionError(
            f"not within {within} s: {inspect.getsource(predicate).strip()} (last: {last!r})"
        ) from None


def until(predicate: Callable[[], Any], within: float = 60.0, every: float = 0.05) -> Any:
    """The same in a test that has no event loop, and waits for processes."""
    return asyncio.run(eventually(predicate, within=within, every=every))
