"""Does anybody read what a chat job answers? One that nobody reads and nobody wants kept is cancelled (DESIGN §3)."""

from collections.abc import Callable

from libs.common.bus.failures import BusError
from services.router.board import Board
from services.router.deeds import Deeds
from services.router.gatherer import Gatherer
from services.router.index import Job
from services.router.oversight import Care

UNWATCHED_S = 30.0  # two looks so far apart, and nobody reads: the job is cancelled


class Readers:
    """`changed` is called when a job was given up."""

    def __init__(self, board: Board, deeds: Deeds, gatherer: Gatherer, changed: Callable[[], None]) -> None:
        self._board = board
        self._deeds = deeds
        self._gatherer = gatherer
        self._changed = changed

    def look_for(self, job: Job, now: float) -> None:
        """Its client and its gateway may both be gone."""
        care = self._board.care_of(job.key)
        if care.looked_at is None:
            care.looked_at = now
        elif job.cancel is None and now - care.looked_at >= UNWATCHED_S:
            care.looked_at = now
            self._deeds.spawn(self._ask(job, care, now))

    async def _ask(self, job: Job, care: Care, now: float) -> None:
        try:
            watched = await self._gatherer.watched(job.key)
        except BusError:
            watched = True  # not known, so nothing is held against it
        if watched:
            care.unwatched_since = None
        elif care.unwatched_since is None:
            care.unwatched_since = now
        elif self._board.index.jobs.get(job.key) is job and job.cancel is None:
            job.cancel = "nobody reads the answer any more"
            self._board.place(job)
            self._changed()
