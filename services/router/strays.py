"""Runs about which nodes and index disagree: a worker runs what is not bound so, or a slot is held for what nobody runs."""

import structlog

from libs.common.journal import Journal
from services.router.board import Board
from services.router.deeds import Deeds
from services.router.fleet import RunKey
from services.router.orders import Orders
from services.router.oversight import fenced

log = structlog.get_logger()

STRAY_S = 3.0  # a run in a heartbeat that the index does not know: normal for a moment


class Strays:
    def __init__(self, board: Board, deeds: Deeds, journal: Journal, orders: Orders) -> None:
        self._board = board
        self._deeds = deeds
        self._journal = journal
        self._orders = orders
        self._since: dict[RunKey, float] = {}

    def look(self, now: float) -> None:
        """What runs but is not bound so is stopped, after a look at the leader: this router's view may be old."""
        seen: set[RunKey] = set()
        for view in self._board.fleet.nodes.values():
            if view.gone:
                continue
            for run in view.listed:
                if run in view.freed or self._board.bound_as(run, view.beat.boot) is not None:
                    continue
                seen.add(run)
                if now - self._since.setdefault(run, now) >= STRAY_S and run[0] not in self._deeds.busy:
                    self._since[run] = now
                    self._deeds.do(run[0], self._stop(view.name, view.beat.boot, run))
        for run in [run for run in self._since if run not in seen]:
            del self._since[run]

    def look_for_empty_holds(self) -> None:
        """A slot that is held for a run which is not bound so any more, and of which its worker never said a word."""
        for view in self._board.fleet.nodes.values():
            for run, hold in view.holds.items():
                if (
                    hold.confirmed is None
                    and run[0] not in self._deeds.busy
                    and not self._board.bound_as(run, view.beat.boot)
                ):
                    view.doubt(run)

    async def _stop(self, node: str, boot: str, run: RunKey) -> None:
        key, epoch = run
        newest = await self._journal.newest(key)
        if newest is not None:
            self._board.adopt(key, newest)
        if fenced(newest, epoch):
            log.warning("run.stray", job_id=key.job, node=node, epoch=epoch)
            await self._orders.cancel(key, node, boot, epoch, "not bound so", fenced=True)
