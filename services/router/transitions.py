"""The router's writes: bind, requeue, end, and tidying up. Each is one compare-and-set on the job's folder.

Losing one is normal (a worker finished first, another router was quicker): the caller gets what stands there instead.
"""

import msgspec
import structlog

from libs.common.bus.connection import Bus
from libs.common.contracts import subjects
from libs.common.contracts.codec import encode
from libs.common.contracts.control import Erase
from libs.common.contracts.events import End as EndEvent
from libs.common.contracts.events import Event, line
from libs.common.contracts.faults import Fault
from libs.common.contracts.headers import EXPECTED_SEQUENCE, FACTS, TTL
from libs.common.contracts.jobs import KEEPS_REQUEST, Attempt, Binding, Completion, Decision, Hint, PastEpoch
from libs.common.contracts.streams import JOBS, OUT
from libs.common.contracts.subjects import JobKey
from libs.common.folder import digest, facts_of, ttl_s
from libs.common.ids import new_op_id
from libs.common.journal import Journal, Lost
from libs.common.states import JobState
from services.router.clock import ServerClock
from services.router.index import Job, Leftover
from services.router.settle import counts, not_before

log = structlog.get_logger()


class Transitions:
    def __init__(self, bus: Bus, clock: ServerClock) -> None:
        self._bus = bus
        self._clock = clock
        self._journal = Journal(bus)

    async def bind(self, job: Job, boot: str, decision: Decision) -> tuple[Binding, int]:
        """The binding and its sequence; its body is the visible text to go on from. Raises what Journal.write raises."""
        text = await self.visible_text(job)
        binding = Binding(
            op_id=new_op_id(),
            job=job.submission,
            submitted=job.submitted,
            created_ms=job.created_ms,
            epoch=job.sequence,
            node=decision.node,
            boot=boot,
            base=len(text),
            past=_gathered(job, text),
            attempts=job.binding.attempts if job.binding else (),
            decision=decision,
        )
        return binding, await self._write_active(job, binding, text, JobState.BOUND)

    async def requeue(self, job: Job, fault: Fault | None, *, refused: bool = False) -> tuple[Binding, int]:
        """Take a bound job from its node: the fence. Its epoch is listed without a base until it has been gathered."""
        bound = job.binding
        assert bound is not None
        assert bound.node is not None
        text = await self.visible_text(job)  # the record that holds it is replaced now: the base never shrinks
        now_ms = self._clock.now_ms()
        attempts = bound.attempts
        if counts(fault):
            assert fault is not None
            attempts = (*attempts, Attempt(epoch=bound.epoch, node=bound.node, fault=fault, at_ms=now_ms))
        binding = Binding(
            op_id=new_op_id(),
            job=job.submission,
            submitted=job.submitted,
            created_ms=job.created_ms,
            epoch=job.sequence,
            base=len(text),
            past=(*bound.past, PastEpoch(epoch=bound.epoch)),
            attempts=attempts,
            not_before_ms=not_before(attempts, fault, now_ms, refused=refused),
        )
        return binding, await self._write_active(job, binding, text, JobState.QUEUED)

    async def keep(self, job: Job) -> tuple[Binding, int]:
        """A second requeue, with the text that was gathered: durable before anybody waits for a slot with it."""
        assert job.binding is not None
        assert job.gathered is not None
        binding = msgspec.structs.replace(
            job.binding,
            op_id=new_op_id(),
            epoch=job.sequence,
            base=len(job.gathered),
            past=_gathered(job, job.gathered),
            parts=None,
        )
        return binding, await self._write_active(job, binding, job.gathered, JobState.QUEUED)

    async def visible_text(self, job: Job) -> bytes:
        """The text to go on from: gathered by this process, or the body of the job's newest `active`.

        Raises Lost when that record is not there any more: somebody has moved the folder on.
        """
        if job.gathered is not None:
            return job.gathered
        if job.binding is None or not job.binding.base:
            return b""
        found = await self._journal.record_at(job.sequence)
        text = await self._journal.body(job.key, found[1]) if found else None
        if text is None:
            raise Lost(await self._journal.newest(job.key))
        return text

    async def end(self, job: Job, state: JobState, fault: Fault) -> tuple[Completion, int]:
        """End a job that no node holds, with what had been shown of it as its log."""
        text = await self.visible_text(job)
        whole = text + line(Event(end=EndEvent(state=state, fault=fault)))
        completion = Completion(
            op_id=new_op_id(),
            job=job.submission,
            submitted=job.submitted,
            created_ms=job.created_ms,
            state=state,
            epoch=job.sequence,
            past=_gathered(job, text),
            attempts=job.binding.attempts if job.binding else (),
            finished_ms=self._clock.now_ms(),
            fault=fault,
            log_size=len(whole),
            log_digest=digest(whole),
        )
        ttl = ttl_s(job.submission, created_ms=job.created_ms, now_ms=self._clock.now_ms(), done=True)
        sequence = await self._journal.write(job.key, "done", completion, whole, expected=job.sequence, ttl=ttl)
        await self._hint(job.key, Hint(state=state, epoch=completion.epoch, sequence=sequence))
        return completion, sequence

    async def tidy(self, key: JobKey, leftover: Leftover) -> None:
        """Empty a finished job's `new`, then `active`: for space and privacy, not for correctness. Raises BusError.

        A record that is another by now has been emptied by somebody else, or its time was over: nothing is left to do.
        """
        if leftover.doubtful and await self._keeps_request(key):
            leftover.new, leftover.parts = 0, None
        if leftover.new:
            await self._journal.empty(key, "new", leftover.new)
        if leftover.active:
            await self._journal.empty(key, "active", leftover.active)
        for n in range(leftover.parts.count if leftover.parts else 0):
            assert leftover.parts
            await self._journal.purge(JOBS, subjects.part(key, leftover.parts.op_id, n))

    async def _keeps_request(self, key: JobKey) -> bool:
        stored = await self._bus.last(JOBS, subjects.record(key, "done"))
        done = facts_of(stored.subject, stored.headers) if stored else None
        return isinstance(done, Completion) and done.state in KEEPS_REQUEST and not done.erased

    async def erase(self, wish: Erase) -> str | None:
        """Replace a finished job's `done` by state and digest, and purge its parts and output. A sentence if it could not.

        Compare-and-set on `done`'s own sequence: the folder's state is final, nothing else may change.
        """
        key = JobKey(wish.client, wish.job)
        entry = await self._journal.newest(key)
        if entry is None or not isinstance(entry.facts, Completion):
            return "the job is not finished"
        completion = entry.facts
        if not completion.erased and entry.sequence != wish.sequence:
            return "the job has changed since it was looked at"
        # First: who finds a `done` that says erased has nothing left to ask for, so no request may stand behind it.
        for record in ("new", "active"):
            stored = await self._bus.last(JOBS, subjects.record(key, record))
            if stored is not None and FACTS in stored.headers:
                await self._journal.empty(key, record, stored.sequence)
        if not completion.erased:
            bare = msgspec.structs.replace(
                completion, op_id=new_op_id(), erased=True, parts=None, decision=None, attempts=(), fault=None,
                job=msgspec.structs.replace(completion.job, metadata=None, affinity=()),
            )  # fmt: skip
            headers = {
                FACTS: encode(bare).decode(),
                EXPECTED_SEQUENCE: str(entry.sequence),
                TTL: str(
                    ttl_s(completion.job, created_ms=completion.created_ms, now_ms=self._clock.now_ms(), done=True)
                ),
            }
            await self._bus.append(subjects.record(key, "done"), b"", headers=headers)
        await self._journal.purge(JOBS, subjects.parts_of_job(key))
        await self._journal.purge(OUT, subjects.segments_of_job(key))
        return None

    async def _write_active(self, job: Job, binding: Binding, text: bytes, state: JobState) -> int:
        ttl = ttl_s(job.submission, created_ms=job.created_ms, now_ms=self._clock.now_ms())
        sequence = await self._journal.write(job.key, "active", binding, text, expected=job.sequence, ttl=ttl)
        await self._hint(job.key, Hint(state=state, epoch=binding.epoch, sequence=sequence))
        return sequence

    async def _hint(self, key: JobKey, hint: Hint) -> None:
        await self._bus.publish(subjects.hint(key), encode(hint))


def _gathered(job: Job, text: bytes) -> tuple[PastEpoch, ...]:
    """The epochs before, the last one with the base that was gathered for it."""
    past = job.binding.past if job.binding else ()
    return tuple(PastEpoch(epoch=p.epoch, base=len(text) if p.base is None else p.base) for p in past)
