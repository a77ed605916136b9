"""settle, gathering: what becomes of a job that is not bound (DESIGN §4, a worker dies). Pure."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.events import Event, line
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.jobs import MAX_ATTEMPTS, Attempt, PastEpoch
from libs.common.states import JobState
from services.router import settle as settle_module
from services.router.gathering import assemble
from services.router.index import Job
from services.router.settle import End, Enqueue, Gather, Wait, counts, not_before, settle
from tests.router.building import BUSY, FAULT, a_binding, a_key, a_requeue, a_submission

# -- settle ------------------------------------------------------------------------------------------------------------------

CREATED = 10_000


def a_job(*, requeued: bool = False, attempts: int = 0, gathered: bytes | None = b"", **more) -> Job:  # type: ignore[no-untyped-def]
    submission = a_submission(deadline_s=60.0)
    job = Job(a_key(), submission, submitted=5, created_ms=CREATED, sequence=5)
    if requeued or attempts:
        history = tuple(Attempt(epoch=n, node="n1", fault=FAULT, at_ms=n) for n in range(attempts))
        job.binding = a_requeue(submission, 5, attempts=history, not_before_ms=more.get("not_before_ms"))
        job.sequence, job.gathered = 9, gathered
    job.cancel = more.get("cancel")
    return job


IN_TIME, LATE = CREATED + 1_000, CREATED + 60_000


@given(
    st.booleans(), st.integers(0, 4), st.sampled_from([None, b"", b'{"text":"a"}\n']),
    st.sampled_from([None, "not wanted"]), st.sampled_from([None, CREATED, LATE - 1, LATE + 5]),
    st.sampled_from([IN_TIME, LATE - 1, LATE, LATE + 10_000]),
)  # fmt: skip
def test_what_comes_next_follows_one_order_of_reasons(requeued, attempts, gathered, cancel, later, now) -> None:  # type: ignore[no-untyped-def]
    """Ungathered first, then the cancel, the deadline, the attempts, the back-off."""
    job = a_job(requeued=requeued, attempts=attempts, gathered=gathered, cancel=cancel, not_before_ms=later)
    step = settle(job, now)
    if job.ungathered:
        assert step == Gather()
    elif cancel:
        assert isinstance(step, End)
        assert (step.state, step.fault.code) == (JobState.CANCELLED, Code.CANCELLED)
    elif now >= LATE:
        assert isinstance(step, End)
        assert (step.state, step.fault.code) == (JobState.EXPIRED, Code.DEADLINE_EXCEEDED)
    elif attempts >= MAX_ATTEMPTS and job.gathered:
        assert isinstance(step, End)
        assert (step.state, step.fault.code) == (JobState.FAILED, Code.INTERRUPTED)
    elif attempts >= MAX_ATTEMPTS:
        assert step == End(JobState.FAILED, FAULT)
    elif job.binding and later and later > now:
        assert step == Wait(later)
    else:
        assert step == Enqueue()
    if isinstance(step, Enqueue):
        assert now < LATE  # a job is never bound after its deadline


def test_only_a_bound_job_or_one_without_open_epochs_needs_no_gathering() -> None:
    submission = a_submission()
    job = Job(a_key(), submission, submitted=5, created_ms=CREATED, sequence=9)
    job.binding = a_binding(submission, 5, past=(PastEpoch(epoch=5),))
    assert not job.ungathered
    job.binding = a_requeue(submission, 5, past=(PastEpoch(epoch=5, base=0),))
    assert not job.ungathered
    job.binding = a_requeue(submission, 5, past=(PastEpoch(epoch=5, base=0), PastEpoch(epoch=7)))
    assert job.ungathered


@pytest.mark.parametrize(
    ("fault", "attempts", "refused", "wait"),
    [
        (None, 0, False, 0),
        (None, 2, False, 0),
        (None, 0, True, settle_module.REFUSED_BACKOFF_MS),
        (BUSY, 0, False, settle_module.BUSY_BACKOFF_MS),
        (BUSY, 2, False, settle_module.BUSY_BACKOFF_MS),
        (FAULT, 1, False, settle_module.BACKOFF_MS[0]),
        (FAULT, 2, False, 4_000),
        (FAULT, 3, False, 15_000),
        (FAULT, 9, False, 15_000),
    ],
)
def test_failures_wait_longer_each_time_and_drains_not_at_all(
    fault: Fault | None, attempts: int, refused: bool, wait: int
) -> None:
    history = tuple(Attempt(epoch=n, node="n1", fault=FAULT, at_ms=n) for n in range(attempts))
    assert not_before(history, fault, 1_000_000, refused=refused) == 1_000_000 + wait


def test_only_failures_count_as_attempts() -> None:
    assert [counts(fault) for fault in (FAULT, BUSY, None)] == [True, False, False]


# -- gathering ---------------------------------------------------------------------------------------------------------------

logs = st.lists(st.text(max_size=6), max_size=8).map(lambda texts: b"".join(line(Event(text=t)) for t in texts))


@given(logs, st.data())
def test_pieces_of_a_log_give_its_longest_known_prefix_of_whole_events(log: bytes, data: st.DataObject) -> None:
    """Any cut into overlapping, repeated, shuffled pieces with gaps; worked out here byte by byte."""
    cuts = st.tuples(st.integers(0, len(log)), st.integers(0, len(log)))
    pieces = [(a, log[a:b]) for a, b in data.draw(st.lists(cuts, max_size=6)) if a <= b]
    carried = log[: data.draw(st.sampled_from([0, *[n + 1 for n, byte in enumerate(log) if byte == 10]]))]
    known = [n < len(carried) or any(a <= n < a + len(piece) for a, piece in pieces) for n in range(len(log))]
    unbroken = known.index(False) if False in known else len(log)
    wanted = log[: log.rfind(b"\n", 0, unbroken) + 1]
    found = assemble(pieces, carried)
    assert found == wanted
    assert len(found) >= len(carried)
    random.Random(0).shuffle(pieces)
    assert assemble([*pieces, *pieces], carried) == wanted


def test_nothing_known_of_the_beginning_gives_nothing() -> None:
    assert assemble([(5, b"tail\n")]) == b""
    assert assemble([]) == b""
    assert assemble([(0, b'{"text":"hal')]) == b""
