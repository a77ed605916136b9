"""All open connections of one port: how many there are, and a look now and then at those that could be slow.

A connection is looked at only while its client owes it something (headers, a body, room for an answer), so that thousands of
streams which just go on cost nothing here.
"""

import asyncio
from collections import Counter
from typing import Protocol

from libs.common.edge import metrics
from libs.common.edge.addresses import Network, is_proxy
from libs.common.edge.limits import Crowded, HttpLimits, is_crowded


class Connection(Protocol):
    def look(self, now: float) -> bool:
        """Ends what takes too long. False: nothing is owed any more."""

    def unsent(self) -> tuple[float, int]:
        """(since when its client has taken too little, bytes that wait for it here)."""

    def drop(self, reason: str) -> None:
        """At once, whatever is on its way."""


class ConnectionTable:
    def __init__(self, limits: HttpLimits, proxies: tuple[Network, ...] = (), port: str = "") -> None:
        self.limits = limits
        self._proxies = proxies
        self._port = port
        self._open = 0
        self._by_address: Counter[str] = Counter()
        self._looked_at: set[Connection] = set()
        self._next_look: asyncio.TimerHandle | None = None

    def enter(self, address: str) -> tuple[Crowded | None, bool]:
        """(how crowded it is with this one, and whether that is its address's fault). `leave` must follow."""
        self._open += 1
        metrics.connections.labels(self._port).set(self._open)
        self._by_address[address] += 1
        limits = self.limits
        everybody = is_crowded(self._open, limits.max_connections)
        if everybody is Crowded.CLOSED or is_proxy(address, self._proxies):
            return everybody, False
        alone = is_crowded(self._by_address[address], limits.max_connections_per_address)
        return (alone, True) if alone else (everybody, False)

    def leave(self, connection: Connection, address: str) -> None:
        self._open -= 1
        metrics.connections.labels(self._port).set(self._open)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
        self._looked_at.discard(connection)

    def look_at(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """From now on, until its `look` says that nothing is owed."""
        self._looked_at.add(connection)
        if self._next_look is None:
            self._next_look = loop.call_later(self.limits.look_every, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._next_look = None
        try:
            self._looked_at = {each for each in [*self._looked_at] if each.look(now)}
            self._relieve()
        finally:
            if self._looked_at:
                self._next_look = loop.call_later(self.limits.look_every, self._look, loop)

    def _relieve(self) -> None:
        """Slow readers together may hold so much; those that have been slow for the longest time go first."""
        waiting = sorted((*each.unsent(), id(each), each) for each in self._looked_at)
        held = sum(size for _, size, _, _ in waiting)
        for _, size, _, connection in waiting:
            if held <= self.limits.max_waiting:
                return
            if size:
                connection.drop("answers_too_large")
                held -= size
