"""Who waits long rises a class, so that nothing starves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey
from services.router import queue as module
from services.router.queue import RANK, RISES_AFTER_MS, PendingQueue
from tests.router.test_queue import RANKED, a_job, a_queue, leftovers, served


def test_who_waits_long_rises_a_class_at_a_time() -> None:
    queue = a_queue(a_job(1, priority=Priority.BATCH, created_ms=0.0))
    now_ms = float(RISES_AFTER_MS)
    queue.add(a_job(2, "ben", created_ms=now_ms))
    queue.add(a_job(3, "ben", priority=Priority.INTERACTIVE, created_ms=now_ms))
    queue.rise(now_ms - 1)
    assert [job.key.job for job in queue.order()] == ["j3", "j2", "j1"]
    queue.rise(now_ms)
    assert [job.key.job for job in queue.order()] == ["j3", "j1", "j2"]
    queue.rise(2 * now_ms)
    assert [job.key.job for job in queue.order()] == ["j1", "j2", "j3"]  # j2 has risen as well
    queue.rise(90 * now_ms)
    assert [job.key.job for job in queue.order()] == ["j1", "j2", "j3"]
    assert served(queue) == ["j1", "j2", "j3"]


def test_a_job_deep_in_its_lane_rises_when_it_has_waited_whatever_comes_before_it() -> None:
    """Its client's younger jobs have earlier deadlines, and another client's class is always ahead of theirs."""
    queue, now_ms = a_queue(a_job(0, "ann", priority=Priority.BATCH, deadline_ms=9e9)), 0.0
    for n in range(1, 2_000):
        now_ms += 1_000.0
        client, priority = (("ann", Priority.BATCH), ("ben", Priority.INTERACTIVE))[n % 2]
        queue.add(a_job(n, client, priority=priority, created_ms=now_ms, deadline_ms=now_ms + 6e4))
        queue.rise(now_ms)
        head = next(queue.heads())
        queue.discard(head.key)
        if n > 60:  # nobody waits past its deadline
            queue.discard(JobKey("ann", f"j{n - 60}"))
        if head.key.job == "j0":
            break
    assert head.key.job == "j0"
    assert now_ms <= 2 * RISES_AFTER_MS + 2_000


aged = st.lists(
    st.tuples(
        st.integers(0, 6), st.sampled_from(["add", "add", "add", "discard", "later", "rise"]), st.sampled_from(RANKED),
        st.integers(1, 3), st.integers(0, 4),
    ),
    max_size=60,
)  # fmt: skip


@settings(deadline=None)
@given(aged, st.integers(0, 5), st.sampled_from([2, 1_000]))
def test_everybody_has_the_class_that_the_wait_brings(taken, slack, at_once) -> None:  # type: ignore[no-untyped-def]
    queue, waiting, now_ms = PendingQueue(), {}, 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLACK", slack)
        patch.setattr(module, "RISE_AT_ONCE", at_once)
        for n, deed, priority, deadline, age in taken:
            job = a_job(n, "ann", priority=priority, deadline_ms=1e9 * deadline, created_ms=now_ms - 1e5 * age)
            match deed:
                case "add":
                    queue.add(job)
                    waiting[job.key] = job
                case "discard":
                    queue.discard(job.key)
                    waiting.pop(job.key, None)
                case "later":
                    now_ms += 1.1e5
                case "rise":
                    queue.rise(now_ms)
        for _ in range(2 * len(taken) + 1):
            queue.rise(now_ms)
    for key, job in waiting.items():
        waited = (now_ms - job.created_ms) // RISES_AFTER_MS
        assert queue._jobs[key] == (job, max(0, RANK[job.priority] - waited))
    assert waiting or not leftovers(queue)


def test_a_queue_that_thousands_pass_through_remembers_few_of_them_and_forgets_nobody_who_waits() -> None:
    queue = a_queue(a_job(0, deadline_ms=9e9))
    for n in range(1, 5_000):
        queue.add(a_job(n))
        queue.discard(JobKey("ann", f"j{n}"))
    assert len(queue._rises) < 1_100
    queue.add(a_job(5_000, "ben", priority=Priority.INTERACTIVE, created_ms=RISES_AFTER_MS))
    queue.rise(RISES_AFTER_MS)
    assert served(queue) == ["j0", "j5000"]


def test_a_batch_job_is_served_however_many_interactive_ones_come() -> None:
    queue, now_ms = a_queue(a_job(0, "batch", priority=Priority.BATCH)), 0.0
    for n in range(1, 2_000):
        now_ms += 1_000.0
        queue.add(a_job(n, priority=Priority.INTERACTIVE, created_ms=now_ms, deadline_ms=now_ms + 6e5))
        queue.rise(now_ms)
        head = next(queue.heads())
        queue.discard(head.key)
        if head.key.client == "batch":
            break
    assert head.key.client == "batch"
    assert now_ms <= 2 * RISES_AFTER_MS + 1_000
