"""A job's folder over a real server: compare-and-set on the whole, lost acks, parts, life times (DESIGN §3)."""

import asyncio
import time

import pytest

from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away, Full, NoResponders, Unconfirmed
from libs.common.bus.stored import Ack
from libs.common.contracts import subjects
from libs.common.contracts.headers import FACTS, TTL
from libs.common.contracts.jobs import (
    INLINE_LIMIT,
    PART_SIZE,
    Binding,
    CancelMark,
    Completion,
    PastEpoch,
    Submission,
)
from libs.common.contracts.requests import Kind
from libs.common.contracts.streams import JOBS
from libs.common.contracts.subjects import JobKey
from libs.common.folder import DONE_EXTRA_TTL_S, ttl_s
from libs.common.ids import new_op_id
from libs.common.journal import Journal, Lost
from libs.common.states import JobState
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

KEY = JobKey("acme", "job_x")
BODY = b'{"model":"m:1"}'


def a_submission() -> Submission:
    return Submission(
        op_id=new_op_id(),
        kind=Kind.CHAT,
        model="m:1",
        route="/jobs",
        deadline_s=600,
        result_ttl_s=600,
        size=1,
        digest="d",
    )


def a_binding(job: Submission, submitted: int, *, node: str | None = "n1", past: tuple[PastEpoch, ...] = ()) -> Binding:
    return Binding(
        op_id=new_op_id(), job=job, submitted=submitted, created_ms=0, epoch=submitted, node=node, boot=node and "b1",
        past=past,
    )  # fmt: skip


def a_completion(job: Submission, submitted: int, *, node: str = "n1") -> Completion:
    return Completion(
        op_id=new_op_id(), job=job, submitted=submitted, created_ms=0, state=JobState.SUCCEEDED, epoch=submitted,
        node=node, finished_ms=0,
    )  # fmt: skip


class Lossy(Bus):
    """Stores what it is given and then loses the ack, or never sends it, as often as it is told."""

    def __init__(self) -> None:
        super().__init__("")
        self.loses, self.drops, self.refuses = 0, 0, 0
        self.appended = 0

    async def append(self, *args, **more) -> Ack:  # type: ignore[no-untyped-def]
        self.appended += 1
        if self.drops:
            self.drops -= 1
            raise Unconfirmed("never sent")
        if self.refuses:
            self.refuses -= 1
            raise NoResponders("no leader")
        ack = await super().append(*args, **more)
        if self.loses:
            self.loses -= 1
            raise Unconfirmed("the ack was lost")
        return ack


@pytest.fixture
async def lossy(nats: NatsServer):  # type: ignore[no-untyped-def]
    bus = Lossy()
    await bus.open([nats.url])
    yield bus
    await bus.close()


@pytest.fixture
def journal(bus: Bus) -> Journal:
    return Journal(bus)


async def submitted(journal: Journal, body: bytes = BODY) -> tuple[Submission, int]:
    job = a_submission()
    return job, await journal.write(KEY, "new", job, body, expected=0, ttl=600)


# -- who was first -----------------------------------------------------------------------------------------------------------


async def test_of_two_writers_at_once_one_wins_and_the_other_sees_the_winners_record(
    journal: Journal, nats: NatsServer
) -> None:
    """Every transition names the sequence of the job's newest record."""
    job, at = await submitted(journal)
    async with connected(nats) as other:
        bindings = [a_binding(job, at, node=name) for name in ("a", "b")]
        results = await asyncio.gather(
            *(
                Journal(bus).write(KEY, "active", binding, b"", expected=at, ttl=600)
                for bus, binding in zip((journal._bus, other), bindings, strict=True)
            ),
            return_exceptions=True,
        )
    [won] = [result for result in results if isinstance(result, int)]
    [lost] = [result for result in results if isinstance(result, Lost)]
    assert lost.newest
    assert lost.newest.sequence == won
    assert lost.newest.facts == bindings[results.index(won)]


async def test_the_compare_and_set_is_on_the_whole_folder_not_on_one_record(journal: Journal) -> None:
    """A worker's `done` names the sequence of its `active`; a requeue in between is the fence."""
    job, at = await submitted(journal)
    bound = await journal.write(KEY, "active", a_binding(job, at), b"", expected=at, ttl=600)
    requeue = a_binding(job, at, node=None, past=(PastEpoch(epoch=at),))
    requeued = await journal.write(KEY, "active", requeue, b"", expected=bound, ttl=600)
    with pytest.raises(Lost) as fenced:
        await journal.write(KEY, "done", a_completion(job, at), b"log", expected=bound, ttl=600)
    assert fenced.value.newest
    assert (fenced.value.newest.sequence, fenced.value.newest.facts) == (requeued, requeue)
    assert await journal._bus.last(JOBS, subjects.record(KEY, "done")) is None


async def test_nothing_is_bound_or_requeued_after_done(journal: Journal) -> None:
    job, at = await submitted(journal)
    bound = await journal.write(KEY, "active", a_binding(job, at), b"", expected=at, ttl=600)
    completion = a_completion(job, at)
    await journal.write(KEY, "done", completion, b"log", expected=bound, ttl=600)
    for expected in (at, bound):
        with pytest.raises(Lost) as lost:
            await journal.write(KEY, "active", a_binding(job, at, node=None), b"", expected=expected, ttl=600)
        assert lost.value.newest
        assert lost.value.newest.final
        assert lost.value.newest.facts == completion


async def test_a_second_submit_of_an_id_finds_the_first(journal: Journal) -> None:
    first, _ = await submitted(journal)
    with pytest.raises(Lost) as lost:
        await submitted(journal)
    assert lost.value.newest
    assert lost.value.newest.facts == first


# -- unknown fates -----------------------------------------------------------------------------------------------------------


async def test_a_lost_ack_is_a_success_found_in_the_folder(lossy: Lossy) -> None:
    journal = Journal(lossy)
    lossy.loses = 1
    _, at = await submitted(journal)
    assert lossy.appended == 1
    newest = await journal.newest(KEY)
    assert newest
    assert newest.sequence == at


async def test_saying_a_write_again_gives_the_same_sequence(journal: Journal) -> None:
    job, at = await submitted(journal)
    binding = a_binding(job, at)
    first = await journal.write(KEY, "active", binding, b"", expected=at, ttl=600)
    assert await journal.write(KEY, "active", binding, b"", expected=at, ttl=600) == first


@pytest.mark.parametrize("how", ["drops", "refuses"])
async def test_a_write_that_never_arrived_is_tried_again(lossy: Lossy, how: str) -> None:
    setattr(lossy, how, 2)
    _, at = await submitted(Journal(lossy))
    assert lossy.appended == 3
    assert (await Journal(lossy).record_at(at)) is not None


async def test_a_submit_on_which_somebody_has_built_already_is_recognised(journal: Journal) -> None:
    """Its ack came late; by then the job is bound, or has even ended and been emptied."""
    job, at = await submitted(journal)
    again = {"expected": 0, "ttl": 600}
    bound = await journal.write(KEY, "active", a_binding(job, at), b"", expected=at, ttl=600)
    assert await journal.write(KEY, "new", job, BODY, **again) == at
    await journal.write(KEY, "done", a_completion(job, at), b"log", expected=bound, ttl=600)
    assert await journal.write(KEY, "new", job, BODY, **again) == at
    await journal.empty(KEY, "new", at)
    await journal.empty(KEY, "active", bound)
    assert await journal.write(KEY, "new", job, BODY, **again) == at


async def test_a_lost_ack_of_a_bind_is_lost_when_somebody_has_already_built_on_it(lossy: Lossy) -> None:
    """It did land, but what stands there now counts, and the caller gets it."""
    journal = Journal(lossy)
    job, at = await submitted(journal)
    binding = a_binding(job, at)
    bound = await journal.write(KEY, "active", binding, b"", expected=at, ttl=600)
    await journal.write(KEY, "done", a_completion(job, at), b"log", expected=bound, ttl=600)
    with pytest.raises(Lost) as lost:
        await journal.write(KEY, "active", binding, b"", expected=at, ttl=600)
    assert lost.value.newest
    assert lost.value.newest.final


async def test_a_write_that_cannot_be_confirmed_in_its_time_says_so(lossy: Lossy) -> None:
    lossy.drops = 1000
    with pytest.raises(Unconfirmed):
        await Journal(lossy).write(KEY, "new", a_submission(), BODY, expected=0, ttl=600, within=0.3)


async def test_a_write_survives_a_restart_of_the_server(journal: Journal, nats: NatsServer) -> None:
    job, at = await submitted(journal)
    await nats.kill()
    writing = asyncio.create_task(journal.write(KEY, "active", a_binding(job, at), b"", expected=at, ttl=600))
    await eventually(lambda: not journal._bus.connected)
    await nats.start()
    bound = await asyncio.wait_for(writing, 30)
    newest = await journal.newest(KEY)
    assert newest
    assert newest.sequence == bound


async def test_without_a_connection_nothing_is_known(journal: Journal, nats: NatsServer) -> None:
    await nats.kill()
    await eventually(lambda: not journal._bus.connected)
    with pytest.raises(Away):
        await journal.newest(KEY)


# -- a full store --------------------------------------------------------------------------------------------------------------


async def test_a_full_store_says_full_and_keeps_what_it_has(bus: Bus, journal: Journal) -> None:
    """The caller keeps its unwritten `done` and tries again; nothing is overwritten."""
    config = (await bus.api(f"STREAM.INFO.{JOBS}"))["config"]
    await bus.api(f"STREAM.UPDATE.{JOBS}", {**config, "max_bytes": 4000})
    job, at = await submitted(journal)
    with pytest.raises(Full):
        await journal.write(KEY, "active", a_binding(job, at), b"x" * 4000, expected=at, ttl=600)
    newest = await journal.newest(KEY)
    assert newest
    assert (newest.sequence, newest.facts) == (at, job)
    await bus.api(f"STREAM.UPDATE.{JOBS}", {**config, "max_bytes": 1_000_000})
    await journal.write(KEY, "active", a_binding(job, at), b"x" * 4000, expected=at, ttl=600)


# -- parts ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, INLINE_LIMIT, INLINE_LIMIT + 1, 3 * PART_SIZE, 3 * PART_SIZE + 1])
async def test_a_body_of_any_size_comes_back_whole(journal: Journal, size: int) -> None:
    """Over 512 kB in parts of 256 kB, acked before the record that names them."""
    body = bytes(n % 251 for n in range(1021)) * (size // 1021 + 1)
    body = body[:size]
    _, at = await submitted(journal, body)
    found = await journal.record_at(at)
    assert found
    subject, entry = found
    assert subject == subjects.record(KEY, "new")
    assert await journal.body(KEY, entry) == body
    assert entry.facts
    if size <= INLINE_LIMIT:
        assert (entry.facts.parts, entry.body) == (None, body)
    else:
        parts = entry.facts.parts
        assert parts
        assert (parts.op_id, parts.count, parts.size) == (entry.facts.op_id, -(-size // PART_SIZE), size)
        assert entry.body == b""
        stored = await journal._bus.last(JOBS, subjects.part(KEY, parts.op_id, parts.count - 1))
        assert stored
        assert stored.sequence < at
        assert stored.headers[TTL] == "600"


async def test_two_submits_never_share_their_parts(journal: Journal) -> None:
    """The model's V-PARTS: under a fixed name a run could read the parts of another submit."""
    one, other = b"a" * (INLINE_LIMIT + 1), b"b" * (INLINE_LIMIT + 1)
    await submitted(journal, one)
    with pytest.raises(Lost) as lost:
        await submitted(journal, other)
    assert lost.value.newest
    assert await journal.body(KEY, lost.value.newest) == one


async def test_a_body_with_a_part_missing_is_none_not_a_shorter_one(journal: Journal) -> None:
    job, at = await submitted(journal, b"x" * (INLINE_LIMIT + 1))
    await journal.purge(JOBS, subjects.part(KEY, job.op_id, 1))
    found = await journal.record_at(at)
    assert found
    assert await journal.body(KEY, found[1]) is None


# -- reading -------------------------------------------------------------------------------------------------------------------


async def test_an_unknown_folder_is_none_after_one_look_or_with_replicas_two(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader just deposed can be stale: 404 only after two reads."""
    looks: list[float] = []
    once = journal._newest_once

    async def counted(key: JobKey):  # type: ignore[no-untyped-def]
        looks.append(time.monotonic())
        return await once(key)

    monkeypatch.setattr(journal, "_newest_once", counted)
    assert await journal.newest(KEY) is None
    assert len(looks) == 1
    journal._bus.replicated = True
    assert await journal.newest(KEY) is None
    assert len(looks) == 3
    assert looks[2] - looks[1] >= 0.25


async def test_the_newest_record_of_an_emptied_folder_is_its_done(journal: Journal) -> None:
    job, at = await submitted(journal)
    completion = a_completion(job, at)
    done = await journal.write(KEY, "done", completion, b"log", expected=at, ttl=600)
    await journal.empty(KEY, "new", at)
    newest = await journal.newest(KEY)
    assert newest
    assert (newest.sequence, newest.facts, newest.body) == (done, completion, b"log")
    poll = await journal.poll(KEY)
    assert poll
    assert poll.facts == completion


async def test_emptying_takes_the_content_and_keeps_a_short_lived_sequence(journal: Journal) -> None:
    job, at = await submitted(journal)
    await journal.write(KEY, "done", a_completion(job, at), b"log", expected=at, ttl=600)
    await journal.empty(KEY, "new", at)
    stored = await journal._bus.last(JOBS, subjects.record(KEY, "new"))
    assert stored
    assert (stored.data, FACTS in stored.headers, stored.headers[TTL]) == (b"", False, "60")
    await journal.empty(KEY, "new", at)  # whoever came first is fine
    again = await journal._bus.last(JOBS, subjects.record(KEY, "new"))
    assert again
    assert again.sequence == stored.sequence


async def test_emptying_names_the_records_own_sequence_so_that_a_later_life_is_not_hit(journal: Journal) -> None:
    """The model's seeded bug `cleanup_nocas`: an acknowledged job is lost."""
    job, at = await submitted(journal)
    bound = await journal.write(KEY, "active", a_binding(job, at), b"", expected=at, ttl=600)
    await journal.empty(KEY, "active", at)
    newest = await journal.newest(KEY)
    assert newest
    assert newest.sequence == bound
    assert newest.facts is not None


async def test_an_emptied_folder_is_free_for_a_keyed_id_only_at_its_sequence(journal: Journal) -> None:
    """Neither a `done` nor a filled `new`: the id may live again, by compare-and-set on the newest sequence."""
    job, at = await submitted(journal)
    await journal.write(KEY, "done", a_completion(job, at), b"log", expected=at, ttl=600)
    await journal.empty(KEY, "new", at)
    await journal.purge(JOBS, subjects.record(KEY, "done"))  # as if its time were over
    with pytest.raises(Lost) as lost:
        await submitted(journal)
    emptied = lost.value.newest
    assert emptied
    assert emptied.facts is None
    second = await journal.write(KEY, "new", a_submission(), BODY, expected=emptied.sequence, ttl=600)
    assert second > emptied.sequence
    with pytest.raises(Lost):
        await journal.write(KEY, "new", a_submission(), BODY, expected=emptied.sequence, ttl=600)


async def test_a_folder_that_has_expired_is_lost_for_its_writers(journal: Journal) -> None:
    job, at = await submitted(journal)
    await journal.purge(JOBS, subjects.folder(KEY))
    with pytest.raises(Lost) as lost:
        await journal.write(KEY, "active", a_binding(job, at), b"", expected=at, ttl=600)
    assert lost.value.newest is None


async def test_a_poll_never_reads_the_prompt(journal: Journal) -> None:
    job, at = await submitted(journal)
    assert await journal.poll(KEY) is None
    binding = a_binding(job, at)
    await journal.write(KEY, "active", binding, b"", expected=at, ttl=600)
    poll = await journal.poll(KEY)
    assert poll
    assert poll.facts == binding


async def test_a_cancel_mark_is_kept_beside_the_folder(journal: Journal) -> None:
    job, at = await submitted(journal)
    assert await journal.cancel_mark(KEY) is None
    await journal.mark_cancelled(KEY, CancelMark(submitted=at, reason="enough"), ttl=600)
    assert await journal.cancel_mark(KEY) == CancelMark(submitted=at, reason="enough")
    await journal.write(KEY, "active", a_binding(job, at), b"", expected=at, ttl=600)  # no transition: nobody is fenced


# -- life times ----------------------------------------------------------------------------------------------------------------


async def test_every_record_carries_its_life_time_and_the_server_ends_it(bus: Bus, journal: Journal) -> None:
    """Nothing outlives its job; `done` goes last, so that nothing can run again behind it."""
    job, at = await submitted(journal)
    stored = await bus.last(JOBS, subjects.record(KEY, "new"))
    assert stored
    now_ms, created_ms = int(time.time() * 1000), stored.at_ms
    assert stored.headers[TTL] == "600"
    short, last = (ttl_s(job, created_ms=created_ms, now_ms=now_ms + 1_199_000, done=done) for done in (False, True))
    assert last - short == DONE_EXTRA_TTL_S
    bound = await journal.write(KEY, "active", a_binding(job, at), b"", expected=at, ttl=short)

    async def gone() -> bool:
        return await bus.last(JOBS, subjects.record(KEY, "active")) is None

    await journal.write(KEY, "done", a_completion(job, at), b"log", expected=bound, ttl=last)
    await eventually(gone, within=last + 1)
    newest = await journal.newest(KEY)
    assert newest
    assert newest.final
