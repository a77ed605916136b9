"""The loop's own bookkeeping, without a server: what a record or a heartbeat changes (DESIGN §3, Router)."""

from types import SimpleNamespace
from typing import Any

import pytest

from libs.common.bus.link import Message
from libs.common.bus.stored import Stored
from libs.common.contracts.codec import encode
from libs.common.contracts.headers import FACTS
from libs.common.contracts.jobs import CancelMark, PastEpoch
from libs.common.contracts.subjects import JobKey, cancel_mark, record
from services.router import loop, reconciler
from services.router.clock import ServerClock
from services.router.loop import Router
from tests.router.building import a_beat, a_binding, a_completion, a_key, a_requeue, a_submission

NOW_MS = 1_700_000_000_000


class StoppedClock(ServerClock):
    ms = NOW_MS

    def now_ms(self) -> int:
        return self.ms


@pytest.fixture
def router() -> Router:
    bus: Any = SimpleNamespace(connected=True, connected_at=0.0)
    return Router(bus, StoppedClock(), lambda: True)


def tell(router: Router, key: JobKey, name: str, facts: Any, sequence: int, at_ms: int = NOW_MS) -> None:
    subject = cancel_mark(key) if name == "cancel" else record(key, name)  # type: ignore[arg-type]
    headers = {FACTS: encode(facts).decode()} if facts is not None else {}
    router.intake.on_record(Stored(subject, sequence, at_ms, headers, b""))


def hear(router: Router, **more: Any) -> None:
    router.intake.on_heartbeat(Message("", encode(a_beat(**more)), {}, ""))


@pytest.mark.parametrize("heard_first", [True, False])
def test_a_binding_made_by_another_router_takes_its_slot_before_its_worker_has_said_a_word(
    router: Router, heard_first: bool
) -> None:
    """As after a restart: or the node is given a job beyond its slots."""
    key, submission = a_key(), a_submission()
    if heard_first:
        hear(router)
    tell(router, key, "new", submission, 1)
    tell(router, key, "active", a_binding(submission, 1, created_ms=NOW_MS), 2)
    if not heard_first:
        hear(router)
    assert set(router.fleet.nodes["n1"].runs) == {(key, 1)}
    hear(router, beat=2, changes=9)
    assert set(router.fleet.nodes["n1"].runs) == {(key, 1)}


@pytest.mark.parametrize("what", ["done", "requeue", "bound elsewhere", "emptied", "reset"])
def test_when_a_binding_is_gone_its_slot_is_free_with_the_next_heartbeat_that_does_not_list_it(
    router: Router, what: str
) -> None:
    """A slot must not leak when every word of the worker was lost (§7.4), nor be given away on `done` alone."""
    key, submission = a_key(), a_submission()
    hear(router)
    tell(router, key, "new", submission, 1)
    tell(router, key, "active", a_binding(submission, 1, created_ms=NOW_MS), 2)
    match what:
        case "done":
            tell(router, key, "done", a_completion(submission, 1), 3)
        case "requeue":
            tell(router, key, "active", a_requeue(submission, 1, epoch=2, created_ms=NOW_MS), 3)
        case "bound elsewhere":
            tell(router, key, "active", a_binding(submission, 1, epoch=2, node="n2", created_ms=NOW_MS), 3)
        case "emptied":
            tell(router, key, "new", None, 4)
        case "reset":
            router.reset()
    assert set(router.fleet.nodes["n1"].runs) == {(key, 1)}
    hear(router, beat=3, changes=4)
    assert not router.fleet.nodes["n1"].runs


def test_the_requeue_that_another_router_wrote_is_gathered_by_this_one_too(router: Router) -> None:
    key, submission = a_key(), a_submission()
    tell(router, key, "new", submission, 1)
    tell(router, key, "active", a_requeue(submission, 1, epoch=2, created_ms=NOW_MS), 3)
    assert key in router.board.due
    assert key not in router.queue
    gathered = a_requeue(submission, 1, epoch=3, created_ms=NOW_MS, past=(PastEpoch(epoch=1, base=0),))
    tell(router, key, "active", gathered, 4)
    assert key not in router.board.due
    assert key in router.queue


def test_a_job_is_in_one_place_only_whatever_happens_to_it(router: Router) -> None:
    key, submission = a_key(), a_submission(deadline_s=10)
    tell(router, key, "new", submission, 1)
    histories = [
        ("active", a_binding(submission, 1, created_ms=NOW_MS), 2),
        ("active", a_requeue(submission, 1, epoch=2, created_ms=NOW_MS), 3),
        ("active", a_requeue(submission, 1, past=(), not_before_ms=NOW_MS + 500, created_ms=NOW_MS), 4),
        ("cancel", CancelMark(submitted=1, reason="no"), 5),
        ("done", a_completion(submission, 1), 6),
    ]
    places = []
    for name, facts, sequence in histories:
        tell(router, key, name, facts, sequence)
        tables = {
            "queue": router.queue,
            "bound": router.board.bound,
            "due": router.board.due,
            "waiting": router.board.waiting,
        }
        places.append([name for name, table in tables.items() if key in table])
    assert places == [["bound"], ["due"], ["waiting"], ["due"], []]


def test_an_unreadable_record_is_passed_over(router: Router) -> None:
    key = a_key()
    router.intake.on_record(Stored(record(key, "new"), 1, NOW_MS, {FACTS: "{"}, b""))
    router.intake.on_record(Stored("parts.a.b.c.0", 2, NOW_MS, {}, b""))
    router.intake.on_heartbeat(Message("", b"nonsense", {}, ""))
    assert not router.index.jobs
    assert not router.fleet.nodes


async def test_a_tick_costs_a_slice_however_many_jobs_wait_and_every_job_comes_up_in_turn(router: Router) -> None:
    """20,000 pending: walking them all four times a second would be most of what a router does."""
    for n in range(5 * reconciler.SWEEP_AT_ONCE):
        tell(router, a_key(f"j{n}"), "new", a_submission(detached=False), n + 1)
    router.reconciler.tick(100.0)
    assert len(router.board.care) == reconciler.SWEEP_AT_ONCE
    for _ in range(4):
        router.reconciler.tick(100.0)
    assert len(router.board.care) == 5 * reconciler.SWEEP_AT_ONCE


async def test_a_deadline_that_passes_in_the_queue_is_found_by_the_sweep(router: Router) -> None:
    key = a_key()
    tell(router, key, "new", a_submission(deadline_s=10), 1)
    router.reconciler.sweep(100.0)
    assert key in router.queue
    router._clock.ms = NOW_MS + 10_000  # type: ignore[attr-defined]
    router.reconciler.sweep(100.0)
    assert key in router.board.due
    assert key not in router.queue


def test_what_fell_through_is_put_back(router: Router) -> None:
    key = a_key()
    tell(router, key, "new", a_submission(), 1)
    router.queue.discard(key)
    router.reconciler.sweep(100.0)
    assert key in router.queue


async def test_a_word_about_an_older_binding_takes_nothing_from_the_node_that_holds_the_job_now(router: Router) -> None:
    """Given back, refused, gone: it was said of one epoch, and by the time it is acted on there may be another."""
    key, submission = a_key(), a_submission()
    tell(router, key, "new", submission, 1)
    tell(router, key, "active", a_binding(submission, 1, created_ms=NOW_MS), 2)
    old, asked = router.index.jobs[key], []

    async def requeue(job: Any, fault: Any, *, refused: bool = False) -> None:
        asked.append(job)

    router._transitions.requeue = requeue  # type: ignore[method-assign,assignment]
    tell(router, key, "active", a_binding(submission, 1, epoch=3, created_ms=NOW_MS), 4)
    await router.reclaimer.requeue(old, 1, None, "given_back")
    tell(router, key, "new", a_submission(), 100)  # another life of the id
    await router.reclaimer.requeue(old, 3, None, "given_back")
    assert asked == []


def test_silence_from_before_a_regained_lease_is_not_held_against_a_node(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NATS stood still without breaking a connection: the lease ran out, and no heartbeat came through either (DESIGN §3)."""
    now = 1_000.0
    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    key, submission = a_key(), a_submission()
    hear(router)
    tell(router, key, "new", submission, 1)
    tell(router, key, "active", a_binding(submission, 1, created_ms=NOW_MS), 2)
    now += 15.0
    taken: list[Any] = []
    monkeypatch.setattr(router.reclaimer, "requeue", lambda job, *_: taken.append(job.key))
    monkeypatch.setattr(router.dispatcher, "order", lambda *_: None)
    monkeypatch.setattr(router._deeds, "do", lambda *_: None)
    router.regained_at = now - 0.1
    router.reconciler.tick(now)
    assert not taken
    router.regained_at = 0.0
    router.reconciler.tick(now)
    assert taken == [key], "without it, the same silence is a death"
