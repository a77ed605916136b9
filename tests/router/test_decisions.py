"""decide, queue, settle, gathering: the pure parts (DESIGN §3, Late binding; §4, a worker dies)."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.events import Event, line
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.jobs import MAX_ATTEMPTS, Attempt, PastEpoch
from libs.common.contracts.nodes import Phase
from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey
from libs.common.states import JobState
from services.router import settle as settle_module
from services.router.decide import MAX_CANDIDATES_KEPT, Bind, Hold, decide, objection
from services.router.fleet import NodeView
from services.router.gathering import assemble
from services.router.index import Job
from services.router.queue import PendingQueue
from services.router.settle import End, Enqueue, Gather, Wait, counts, not_before, settle
from tests.router.building import BUSY, FAULT, a_beat, a_binding, a_key, a_requeue, a_submission

NOW = 1_000.0
MODELS = ("m:1", "x:1", "y:1")

# -- decide ------------------------------------------------------------------------------------------------------------------

nodes = st.builds(
    lambda name, slots, per_model, disk, loaded, running, flags, heard, gone, bound_at, stuck: (
        name, slots, per_model, disk, loaded, running, flags, heard, gone, bound_at, stuck,
    ),
    name=st.integers(0, 30).map(lambda n: f"n{n}"),
    slots=st.integers(0, 3),
    per_model=st.integers(0, 2),
    disk=st.sets(st.sampled_from(MODELS)),
    loaded=st.sets(st.sampled_from(MODELS), max_size=2),
    running=st.lists(st.tuples(st.sampled_from(MODELS), st.sampled_from(list(Phase))), max_size=3),
    flags=st.tuples(st.booleans(), st.booleans()),
    heard=st.sampled_from([NOW, NOW - 3, NOW - 6, NOW - 9, 0.0]),
    gone=st.booleans(),
    bound_at=st.sampled_from([0.0, 1.0, 2.0]),
    # suspect models, stuck cold loads, set aside for so long
    stuck=st.tuples(st.sets(st.sampled_from(MODELS), max_size=1), st.booleans(), st.sampled_from([0.0, 0.0, -1.0, 1.0])),
)  # fmt: skip


def view_of(facts) -> NodeView:  # type: ignore[no-untyped-def]
    name, slots, per_model, disk, loaded, running, (draining, unreachable), heard, gone, bound_at, stuck = facts
    beat = a_beat(
        name, slots=slots, slots_per_model=per_model, models=tuple(sorted(disk | loaded)), loaded=tuple(sorted(loaded)),
        draining=draining, reachable=not unreachable, suspect_models=tuple(stuck[0]), cold_stuck=stuck[1],
    )  # fmt: skip
    view = NodeView(name, beat, heard_at=heard, gone=gone, last_bound_at=bound_at, set_aside_until=NOW + stuck[2])
    for n, (model, _) in enumerate(running):
        view.reserve((JobKey("acme", f"r{n}"), n), model)
    return view


fleets = st.lists(nodes, max_size=6, unique_by=lambda facts: facts[0])


@given(fleets)
def test_a_node_that_cannot_take_it_is_never_chosen(facts) -> None:  # type: ignore[no-untyped-def]
    """Written down here in full once more, from the DESIGN and not from the code."""
    views = {f[0]: view_of(f) for f in facts}
    verdict = decide("m:1", views.values(), now=NOW, connected_at=0.0)
    able = [
        view
        for view in views.values()
        if not view.gone
        and view.heard_at > 0
        and NOW - view.heard_at < 5
        and not view.beat.draining
        and view.beat.reachable
        and "m:1" in view.disk
        and "m:1" not in view.beat.suspect_models
        and ("m:1" in view.loaded or not view.beat.cold_stuck)
        and view.set_aside_until <= NOW
        and len(view.holds) < view.beat.slots
        and (
            not view.beat.slots_per_model
            or sum(hold.model == "m:1" for hold in view.holds.values()) < view.beat.slots_per_model
        )
        # never a second cold model while one loads
        and ("m:1" in view.loaded or {hold.model for hold in view.holds.values()} - view.loaded <= {"m:1"}
             or any(hold.model == "m:1" for hold in view.holds.values()))
    ]  # fmt: skip
    if not able:
        assert isinstance(verdict, Hold)
        assert verdict.reason
        return
    assert isinstance(verdict, Bind)
    chosen = views[verdict.node]
    assert chosen in able
    assert verdict.boot == chosen.beat.boot
    assert verdict.decision.reason
    assert verdict.decision.node == verdict.node

    def cold(view: NodeView) -> bool:
        return "m:1" not in view.loaded and all(hold.model != "m:1" for hold in view.holds.values())

    assert (cold(chosen), len(chosen.holds)) == min((cold(view), len(view.holds)) for view in able)
    assert verdict.decision.cold == cold(chosen)


@given(fleets, st.randoms(use_true_random=False))
def test_the_same_values_give_the_same_verdict_in_whatever_order_nodes_are_known(facts, shuffling) -> None:  # type: ignore[no-untyped-def]
    views = [view_of(f) for f in facts]
    first = decide("m:1", views, now=NOW, connected_at=0.0)
    shuffling.shuffle(views)
    assert decide("m:1", views, now=NOW, connected_at=0.0) == first


@given(fleets)
def test_one_more_idle_node_that_can_take_it_never_makes_a_job_wait(facts) -> None:  # type: ignore[no-untyped-def]
    views = [view_of(f) for f in facts]
    idle = NodeView("zz", a_beat("zz"), heard_at=NOW)
    verdict = decide("m:1", [*views, idle], now=NOW, connected_at=0.0)
    assert isinstance(verdict, Bind)
    before = decide("m:1", views, now=NOW, connected_at=0.0)
    if isinstance(before, Bind):
        assert before.node == verdict.node or verdict.node == "zz"


def test_a_node_that_is_loading_takes_more_of_that_model_but_no_other_cold_one() -> None:
    """Ollama loads one model after the other (ollama-facts §3.1)."""
    view = NodeView("n1", a_beat(slots=4, models=("m:1", "x:1", "w:1"), loaded=("w:1",)), heard_at=NOW)
    view.reserve((a_key(), 1), "m:1")
    assert objection("m:1", view, now=NOW, connected_at=0) is None
    assert objection("w:1", view, now=NOW, connected_at=0) is None
    assert objection("x:1", view, now=NOW, connected_at=0) == "another model is loading"


def test_what_is_stuck_gets_no_work_and_the_decision_says_so() -> None:
    """A node that is silent altogether, one model of a node, the cold loads of a node (ollama-facts.md §3.4)."""

    def reason(model: str, **more: Any) -> str | None:
        view = NodeView("n1", a_beat(slots=4, models=("m:1", "x:1"), loaded=("x:1",), **more), heard_at=NOW)
        return objection(model, view, now=NOW, connected_at=0)

    assert reason("m:1", reachable=False, suspect_models=("x:1",)) == "its Ollama fell silent and is being watched"
    assert reason("m:1", reachable=False) == "its Ollama does not answer"
    assert reason("x:1", suspect_models=("X:1",)) == "the model fell silent there and is being watched"
    assert reason("m:1", suspect_models=("x:1",)) is None
    assert reason("m:1", cold_stuck=True) == "a load never came there: only models in memory"
    assert reason("x:1", cold_stuck=True) is None

    stuck, well = (
        NodeView("a", a_beat("a", cold_stuck=True, loaded=()), heard_at=NOW),
        NodeView("b", a_beat("b"), heard_at=NOW),
    )
    verdict = decide("m:1", [stuck, well], now=NOW, connected_at=0)
    assert isinstance(verdict, Bind)
    assert [(each.node, each.verdict) for each in verdict.decision.candidates] == [
        ("a", "a load never came there: only models in memory")
    ]
    assert decide("m:1", [stuck], now=NOW, connected_at=0) == Hold("a load never came there: only models in memory")


def test_a_hold_says_what_stands_in_the_way_and_nothing_of_nodes_without_the_model() -> None:
    full, other = NodeView("a", a_beat("a", slots=0), heard_at=NOW), NodeView("b", a_beat("b", models=()), heard_at=NOW)
    assert decide("m:1", [full, other], now=NOW, connected_at=0) == Hold("all slots taken")
    assert decide("m:1", [other], now=NOW, connected_at=0) == Hold("no node has the model")
    assert decide("m:1", [], now=NOW, connected_at=0) == Hold("no node has joined the fleet")


def test_the_record_of_a_decision_stays_small_in_a_large_fleet() -> None:
    views = [NodeView(f"n{n}", a_beat(f"n{n}"), heard_at=NOW) for n in range(60)]
    verdict = decide("m:1", views, now=NOW, connected_at=0)
    assert isinstance(verdict, Bind)
    assert len(verdict.decision.candidates) == MAX_CANDIDATES_KEPT


# -- queue -------------------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "discard", "take"]),
        st.integers(0, 8),
        st.sampled_from(MODELS),
        st.sampled_from(list(Priority)),
    ),
    max_size=40,
)
RANKED = [Priority.INTERACTIVE, Priority.NORMAL, Priority.BATCH]


@given(steps)
def test_the_queue_serves_as_a_sorted_list_would(taken) -> None:  # type: ignore[no-untyped-def]
    """Priority class, then age; a head per model; positions count through; adding again changes nothing but the place."""
    queue = PendingQueue()
    plain: dict[JobKey, tuple[int, int, str]] = {}
    for deed, n, model, priority in taken:
        key = JobKey("acme", f"j{n}")
        if deed == "add":
            queue.add(key, model, priority, submitted=n)
            plain[key] = (RANKED.index(priority), n, model)
        elif deed == "discard":
            queue.discard(key)
            plain.pop(key, None)
        elif (head := next(queue.heads(), None)) is not None:
            assert head[0] == min(plain, key=lambda k: plain[k][:2])
            queue.discard(head[0])
            del plain[head[0]]
        order = sorted(plain, key=lambda k: plain[k][:2])
        assert len(queue) == len(plain)
        assert [queue.position(k) for k in order] == list(range(1, len(order) + 1))
        heads: dict[str, JobKey] = {}
        for k in order:
            heads.setdefault(plain[k][2], k)
        assert list(queue.heads()) == [(k, m) for m, k in heads.items()]
    assert queue.position(a_key()) is None


def test_the_head_is_not_starved_by_those_who_come_later() -> None:
    queue = PendingQueue()
    first = a_key()
    queue.add(first, "m:1", Priority.NORMAL, 1)
    for n in range(2, 200):
        queue.add(a_key(), "m:1", Priority.NORMAL, n)
        assert next(queue.heads()) == (first, "m:1")


def test_those_who_have_left_are_not_kept_behind_a_head_that_stays() -> None:
    queue = PendingQueue()
    first = a_key()
    queue.add(first, "m:1", Priority.INTERACTIVE, 1)
    for n in range(5_000):
        key = a_key()
        queue.add(key, "m:1", Priority.BATCH, n)
        queue.discard(key)
    assert list(queue.heads()) == [(first, "m:1")]
    assert len(queue._heaps["m:1"]) <= 1_100


def test_a_job_that_was_given_back_gets_its_old_place() -> None:
    queue = PendingQueue()
    old, young = a_key(), a_key()
    queue.add(old, "m:1", Priority.NORMAL, 1)
    queue.discard(old)
    queue.add(young, "m:1", Priority.NORMAL, 2)
    queue.add(old, "m:1", Priority.NORMAL, 1)
    assert queue.position(old) == 1


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
