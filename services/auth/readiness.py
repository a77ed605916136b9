"""Whether anybody can be judged now: a client that was disabled meanwhile must not get through on old knowledge."""

from collections.abc import Callable

from libs.common.contracts.faults import Code, failed


class Readiness:
    def __init__(self, *checks: Callable[[], str | None]) -> None:
        self._checks = checks

    def require(self) -> None:
        """Raises Failed (UNAVAILABLE)."""
        if (why := next((why for check in self._checks if (why := check()) is not None), None)) is not None:
            raise failed(
                Code.UNAVAILABLE, f"The auth service is not ready: {why}. Try again in a moment.", retry_after_s=1
            )
