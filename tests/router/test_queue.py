"""Whose turn it is: class, share, deadline, age (peers-and-routing.md §5.3, which tenant next). Pure."""

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey
from services.router.queue import PendingQueue, Waiting, cost
from services.router.shares import FADES_S

RANKED = [Priority.INTERACTIVE, Priority.NORMAL, Priority.BATCH]
CLIENTS = ("ann", "ben", "cleo")
MODELS = ("m:1", "x:1")


def a_job(n: int, client: str = "ann", **more: Any) -> Waiting:
    """Number `n` of the stream."""
    facts: dict[str, Any] = {
        "model": "m:1", "priority": Priority.NORMAL, "submitted": n, "created_ms": 0.0, "deadline_ms": 600_000.0,
        "tokens": 100.0,
    }  # fmt: skip
    return Waiting(key=JobKey(client, f"j{n}"), **{**facts, **more})


def a_queue(*jobs: Waiting) -> PendingQueue:
    queue = PendingQueue()
    for job in jobs:
        queue.add(job)
    return queue


def served(queue: PendingQueue, now: float = 0.0) -> list[str]:
    """Everybody, one after the other; each ends at once at no cost, so that shares stay as they are."""
    order = []
    while (head := next(queue.heads(), None)) is not None:
        queue.discard(head.key)
        order.append(head.key.job)
    return order


def leftovers(queue: PendingQueue) -> list[object]:
    """All that it still knows of anybody; `_had` are the shares."""
    return [
        table
        for name, table in (vars(queue) | vars(queue._shares)).items()
        if name not in ("_shares", "_had", "_fades_from", "over", "_first", "_lanes") and table
    ]


jobs = st.builds(
    lambda n, client, priority, deadline: a_job(
        n, client, model=MODELS[n % 2], priority=priority, deadline_ms=deadline * 1e5
    ),
    st.integers(0, 30), st.sampled_from(CLIENTS), st.sampled_from(RANKED), st.integers(1, 4),
)  # fmt: skip
steps = st.lists(
    st.tuples(st.sampled_from(["add", "add", "add", "discard", "serve", "end", "fail", "later", "rise"]), jobs),
    max_size=50,
)


def brought_up(steps: Any) -> tuple[PendingQueue, dict[JobKey, Waiting], dict[JobKey, Waiting], float]:
    queue, waiting, running, now = PendingQueue(), {}, {}, 0.0
    for deed, job in steps:
        match deed:
            case "add" if job.key not in running and all(
                job.submitted != one.submitted for key, one in waiting.items() if key != job.key
            ):
                queue.add(job)
                waiting[job.key] = job
            case "discard":
                queue.discard(job.key)
                waiting.pop(job.key, None)
            case "serve" if (head := next(queue.heads(), None)) is not None:
                queue.serve(head.key, now)
                running[head.key] = waiting.pop(head.key)
            case "end" | "fail" if running:
                key = min(running)
                del running[key]
                queue.ended(key, now, tokens=80.0 if deed == "end" else None)
            case "later":
                now += 40.0
            case "rise":
                queue.rise(now * 1000)
    return queue, waiting, running, now


@settings(deadline=None)
@given(steps)
def test_places_are_the_order_in_which_jobs_are_served(taken) -> None:  # type: ignore[no-untyped-def]
    queue, waiting, _, _ = brought_up(taken)
    assert len(queue) == len(waiting)
    places = [job.key.job for job in queue.order()]
    of_model = {model: [job.key.job for job in queue.turns(model)] for model in MODELS}
    names = {key.job: job.model for key, job in waiting.items()}
    order = served(queue)
    assert sorted(order) == sorted(names)
    assert places == order
    assert of_model == {model: [name for name in order if names[name] == model] for model in MODELS}
    assert not len(queue)


@settings(deadline=None)
@given(steps)
def test_a_head_is_the_best_of_its_model(taken) -> None:  # type: ignore[no-untyped-def]
    """One per model that waits; nobody of its model has a better class, or, with the same client, an earlier deadline."""
    queue, waiting, _, now = brought_up(taken)
    heads = list(queue.heads())
    assert sorted(head.model for head in heads) == sorted({job.model for job in waiting.values()})

    def rank(job: Waiting) -> int:
        return queue._jobs[job.key][1]

    for head in heads:
        for job in waiting.values():
            if job.model == head.model:
                assert rank(head) <= rank(job)
                if job.key.client == head.key.client and rank(job) == rank(head):
                    assert head.deadline_ms <= job.deadline_ms
    assert {model: dict(clients) for model, clients in queue.waiting_by_model().items()} == {
        model: {
            client: count
            for client in CLIENTS
            if (count := sum(job.model == model and job.key.client == client for job in waiting.values()))
        }
        for model in {job.model for job in waiting.values()}
    }
    for model in MODELS:
        waited = sum(now * 1000 - job.created_ms for job in waiting.values() if job.model == model)
        assert queue.waited_ms(model, now * 1000) == waited


@settings(deadline=None)
@given(steps)
def test_when_all_have_left_nothing_is_left(taken) -> None:  # type: ignore[no-untyped-def]
    queue, waiting, running, now = brought_up(taken)
    for key in waiting:
        queue.discard(key)
    for key in running:
        queue.ended(key, now)
    assert leftovers(queue) == []
    assert list(queue.heads()) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CLIENTS), st.integers(0, 500)), max_size=20), st.floats(0, 1000))
def test_what_is_given_back_was_never_had(taken, later: float) -> None:  # type: ignore[no-untyped-def]
    """A job that was bound and failed is charged again when it is bound again: the first charge goes, whenever that is."""
    queue = PendingQueue()
    queue.serve(JobKey("ann", "first"), 0.0, a_job(1))
    before = dict(queue._shares._had)
    for n, (client, at) in enumerate(sorted(taken, key=lambda pair: pair[1])):
        queue.serve(JobKey(client, f"r{n}"), at, a_job(n, client))
    for n, (client, _) in enumerate(sorted(taken, key=lambda pair: pair[1])):
        queue.ended(JobKey(client, f"r{n}"), 500 + later, tokens=0)
    for client, had in queue._shares._had.items():
        assert math.isclose(had, before.get(client, 0.0), abs_tol=1e-3)


def test_serving_and_ending_again_change_nothing() -> None:
    queue = a_queue(a_job(1))
    for _ in range(3):
        queue.serve(JobKey("ann", "j1"), 0.0, a_job(1))
    assert queue._shares._had == {"ann": 100.0}
    for _ in range(3):
        queue.ended(JobKey("ann", "j1"), 0.0, tokens=30.0)
    assert queue._shares._had == {"ann": 30.0}
    queue.ended(JobKey("ann", "never"), 0.0, tokens=30.0)
    assert queue._shares._had == {"ann": 30.0}


def test_classes_come_first_then_age() -> None:
    queue = a_queue(
        a_job(1, priority=Priority.BATCH),
        a_job(2, "ben"),
        a_job(3, "cleo", priority=Priority.INTERACTIVE),
        a_job(4, priority=Priority.INTERACTIVE),
        a_job(5),
    )
    assert served(queue) == ["j3", "j4", "j2", "j5", "j1"]


def test_within_a_client_the_earliest_deadline_first_but_no_client_passes_others_with_it() -> None:
    queue = a_queue(
        a_job(1, deadline_ms=9e5),
        a_job(2, deadline_ms=1e5),
        a_job(3, deadline_ms=5e5),
        a_job(4, "ben", deadline_ms=1e3),
    )
    assert served(queue) == ["j2", "j3", "j1", "j4"]


def flooded(weights: dict[str, float], rounds: int, *, arrivals: dict[str, int]) -> dict[str, list[float]]:
    """One slot, a second and 100 tokens a job; `arrivals` per ten seconds. How long each client's jobs waited."""
    queue, waits, number = PendingQueue(), {client: [] for client in weights}, 0
    for second in range(rounds):
        if second % 10 == 0:
            for client, count in arrivals.items():
                for _ in range(count):
                    number += 1
                    queue.add(a_job(number, client, weight=weights[client], created_ms=second * 1000.0))
        if (head := next(queue.heads(), None)) is not None:
            queue.serve(head.key, second)
            client = head.key.client
            waits[client].append(second - head.created_ms / 1000)
            queue.ended(head.key, second + 1, weight=weights[client], tokens=100.0)
    return waits


def test_a_flood_of_one_among_five_makes_the_others_wait_little() -> None:
    """Each of the quiet four asks for a tenth of the slot, the flood for four times all of it."""
    quiet = dict.fromkeys(("ann", "ben", "cleo", "dan"), 1)
    waits = flooded(dict.fromkeys((*quiet, "flood"), 1.0), 600, arrivals={"flood": 40, **quiet})
    for client in quiet:
        settled = waits[client][3:]
        assert len(waits[client]) >= 59
        assert max(settled) <= 8
    assert len(waits["flood"]) >= 340  # what the others leave


def test_weights_divide_a_slot_that_all_want() -> None:
    waits = flooded({"ann": 8.0, "ben": 1.0}, 1_000, arrivals={"ann": 20, "ben": 20})
    assert 2 < len(waits["ann"]) / len(waits["ben"]) < 10  # a client is level up to three times the other of two


def test_a_newcomer_is_compared_at_once() -> None:
    """Whoever was alone had no more than its share; with somebody beside it, it had."""
    queue = a_queue(*(a_job(n, "flood") for n in range(1, 5)))
    queue.serve(JobKey("flood", "j1"), 0.0)
    assert next(queue.heads()).key.job == "j2"
    queue.add(a_job(9, "ben"))
    assert next(queue.heads()).key.job == "j9"
    assert [job.key.job for job in queue.order()] == ["j9", "j2", "j3", "j4"]


def test_the_past_fades() -> None:
    def first(later: float) -> str:
        queue = PendingQueue()
        queue.serve(JobKey("ann", "old"), 0.0, a_job(0, tokens=10_000.0))
        queue.ended(JobKey("ann", "old"), 0.0, tokens=10_000.0)
        for n, client in enumerate(("ann", "ben"), 1):
            queue.serve(JobKey(client, "new"), later, a_job(n, client, tokens=1_000.0))
            queue.add(a_job(n + 10, client))
        return next(queue.heads()).key.client

    assert first(FADES_S) == "ben"
    assert first(6 * FADES_S) == "ann"
    assert first(500 * FADES_S) == "ann"  # and no number has grown out of bounds


def test_a_client_at_its_limit_waits_for_its_own_and_nobody_else_does() -> None:
    queue = a_queue(*(a_job(n, max_running=2) for n in range(1, 5)), a_job(9, "ben"))
    taken = []
    while (head := next(queue.heads(), None)) is not None:
        queue.serve(head.key, 0.0)
        taken.append(head.key.job)
    assert taken == ["j1", "j9", "j2"]
    assert queue.turns("m:1") == []
    queue.ended(JobKey("ann", "j1"), 1.0, tokens=1.0)
    assert [head.key.job for head in queue.heads()] == ["j3"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["add", "serve", "end"]), max_size=60), st.integers(1, 3))
def test_a_client_never_has_more_running_than_it_may(deeds: list[str], limit: int) -> None:
    queue, running, n = PendingQueue(), [], 0
    for deed in deeds:
        if deed == "add":
            n += 1
            queue.add(a_job(n, max_running=limit, model=MODELS[n % 2]))
        elif deed == "serve" and (head := next(queue.heads(), None)) is not None:
            queue.serve(head.key, 0.0)
            running.append(head.key)
        elif deed == "end" and running:
            queue.ended(running.pop(), 0.0, tokens=1.0)
        assert len(running) <= limit
        assert bool(list(queue.heads())) == (len(running) < limit and len(queue) > 0)


def test_the_head_is_not_starved_by_those_who_come_later() -> None:
    queue = a_queue(a_job(1))
    for n in range(2, 200):
        queue.add(a_job(n))
        assert next(queue.heads()).key.job == "j1"


def test_those_who_have_left_are_not_kept_behind_a_head_that_stays() -> None:
    queue = a_queue(a_job(1))
    for n in range(2, 5_000):
        queue.add(a_job(n))
        queue.discard(JobKey("ann", f"j{n}"))
    assert [head.key.job for head in queue.heads()] == ["j1"]
    assert sum(len(lane) for lanes in queue._lanes.values() for lane in lanes.values()) <= 1_100


def test_a_job_that_was_given_back_gets_its_old_place() -> None:
    queue = a_queue(a_job(1), a_job(2, "ben"))
    queue.serve(JobKey("ann", "j1"), 0.0)
    queue.ended(JobKey("ann", "j1"), 1.0, tokens=0)
    queue.add(a_job(1))
    assert [job.key.job for job in queue.order()] == ["j1", "j2"]


def test_what_nobody_says_the_cost_of_stays_charged() -> None:
    queue = PendingQueue()
    queue.serve(JobKey("ann", "j1"), 0.0, a_job(1))
    before = queue._shares._had["ann"]
    queue.ended(JobKey("ann", "j1"), 1.0)
    assert queue._shares._had["ann"] == before


def test_jobs_go_and_shares_stay_when_the_queue_is_cleared() -> None:
    queue = a_queue(*(a_job(n) for n in range(4)))
    queue.serve(JobKey("ann", "j0"), 0.0)
    queue.clear()
    assert (len(queue), leftovers(queue), list(queue.heads())) == (0, [], [])
    assert queue._shares._had == {"ann": 100.0}


def test_an_output_token_costs_as_much_as_two_of_the_prompt() -> None:
    assert cost(600, 200) == 1_000
