"""Requests that are being answered, by whose they are: what a revocation has to find and end (DESIGN §7.6)."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator

from libs.common.contracts.clients import Principal, Scope


class Session:
    """One request, in the task that answers it, and the scope that it needs. `lapsed`: why it was ended, once it was."""

    def __init__(self, principal: Principal, scope: Scope | None, task: "asyncio.Task[object]") -> None:
        self.principal = principal
        self.scope = scope
        self.lapsed: str | None = None
        self._task = task

    def end(self, reason: str) -> None:
        """Twice is once."""
        if self.lapsed is None:
            self.lapsed = reason
            self._task.cancel()

    def caught(self) -> bool:
        """To be asked where the task's cancellation was caught: was it `end`? Then the task goes on."""
        if self.lapsed is not None:
            self._task.uncancel()
        return self.lapsed is not None


class Sessions:
    def __init__(self) -> None:
        self._of: dict[str, set[Session]] = {}

    @contextlib.contextmanager
    def one(self, principal: Principal, scope: Scope | None) -> Iterator[Session]:
        """For as long as it is entered, in the current task, the request may be ended."""
        task = asyncio.current_task()
        assert task is not None
        session = Session(principal, scope, task)
        mine = self._of.setdefault(principal.client, set())
        mine.add(session)
        try:
            yield session
        finally:
            mine.discard(session)
            if not mine and self._of.get(principal.client) is mine:
                del self._of[principal.client]

    def end_lapsed(self, clients: Iterable[str] | None, lapsed: Callable[[Session], str | None]) -> int:
        """Of these clients, or of all; how many were ended."""
        ended = 0
        for client in list(self._of if clients is None else clients):
            for session in list(self._of.get(client, ())):
                if session.lapsed is None and (reason := lapsed(session)) is not None:
                    session.end(reason)
                    ended += 1
        return ended
