"""The log of a job from a position on, once: for who reads live chunks itself and has missed something (docs/nats.md)."""

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.contracts import subjects
from libs.common.contracts.api import Piece
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.control import Read
from libs.common.contracts.events import MAX_CHUNK, Position, parse_frame
from libs.common.contracts.faults import Code, failed
from libs.common.contracts.jobs import Binding, Completion, Submission
from libs.common.contracts.subjects import JobKey
from libs.common.folder import Entry
from libs.common.journal import Journal
from libs.common.positions import carry
from services.gateway.view import state_of

WORKER_S = 2.0


class LogReader:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._journal = Journal(bus)

    async def piece(self, key: JobKey, entry: Entry, asked: Position, *, running: bool) -> Piece:
        """`entry` is the folder's newest record, from the leader. Raises Failed (UNAVAILABLE)."""
        facts = entry.facts
        assert facts is not None
        state = state_of(facts, running)
        if isinstance(facts, Submission):
            return Piece(state=state, epoch=0)
        if isinstance(facts, Binding) and facts.node is None:
            # A requeue has an epoch, but no run and so no positions: the next binding does not list it.
            return Piece(state=state, epoch=facts.epoch, lineage=facts.past)
        place = carry(asked, facts.epoch, facts.past)
        try:
            log = b"" if place is None else await self._bytes(key, entry, facts, place.offset)
        except BusError as error:
            message = f"the log cannot be read at the moment ({error}); try again"
            raise failed(Code.UNAVAILABLE, message) from error
        offset = None if place is None else place.offset
        return Piece(state=state, epoch=facts.epoch, lineage=facts.past, offset=offset, log=log[:MAX_CHUNK])

    async def _bytes(self, key: JobKey, entry: Entry, facts: Binding | Completion, offset: int) -> bytes:
        """As many as one look gives. Nothing when the worker is silent: whoever wants more asks again."""
        if isinstance(facts, Completion) or offset < facts.base:
            log = await self._journal.body_from(key, entry, offset)
            if log is None:
                raise failed(Code.JOB_NOT_FOUND, "the job's time is over")
            return log
        if facts.node is None or facts.boot is None:
            return b""  # for the type checker
        wish = Read(client=key.client, job=key.job, epoch=facts.epoch, offset=offset)
        try:
            subject = subjects.worker(facts.node, facts.boot, "read")
            reply = await self._bus.request(subject, encode(wish), timeout=WORKER_S)
            start, log = parse_frame(reply) if reply else (offset, b"")
        except (BusError, Malformed):
            return b""
        return log if start == offset else b""
