"""Whose credentials may have changed since somebody looked."""

import asyncio


class Changes:
    def __init__(self) -> None:
        self._clients: set[str] = set()
        self._all = True
        self._some = asyncio.Event()
        self._some.set()

    def note(self, client: str | None) -> None:
        """None: anybody's."""
        if client is None:
            self._all = True
        else:
            self._clients.add(client)
        self._some.set()

    async def wait(self) -> None:
        """Until there are some that nobody has taken."""
        await self._some.wait()

    def take(self) -> frozenset[str] | None:
        """The clients; None: all of them."""
        taken = None if self._all else frozenset(self._clients)
        self._all = False
        self._clients.clear()
        self._some.clear()
        return taken
