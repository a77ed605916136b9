"""What the router believes of the nodes: heartbeats, liveness, and which runs hold slots (DESIGN §3, Nodes). Pure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.nodes import DEAD_S, SUSPECT_S, Phase
from services.router.fleet import (
    FAILED_JOBS,
    MAX_FAILING,
    MAX_SET_ASIDE_S,
    NO_RESPONDERS_GONE,
    PRELOAD_RETRY_S,
    SET_ASIDE_S,
    Fleet,
    Hold,
    Liveness,
    NodeView,
    Preload,
)
from tests.router.building import a_beat, a_key

RUN = (a_key("job_a"), 7)
OTHER = (a_key("job_b"), 9)


def a_view(**more) -> NodeView:  # type: ignore[no-untyped-def]
    return NodeView("n1", a_beat(**more), heard_at=1.0)


# -- heartbeats --------------------------------------------------------------------------------------------------------------


@given(st.permutations(range(1, 7)), st.data())
def test_whatever_the_order_of_heartbeats_the_newest_stands(order, data) -> None:  # type: ignore[no-untyped-def]
    """Repeated, older and late ones change nothing; those of the bucket are no sign of life."""
    fleet = Fleet()
    newest_live, now = 0, 0.0
    for beat in order:
        now += 1
        live = data.draw(st.booleans())
        fleet.hear(a_beat(beat=beat, slots=beat), now, live=live)
        if live and beat > newest_live:
            newest_live = beat
        view = fleet.nodes["n1"]
        if newest_live:
            assert view.beat.beat >= newest_live
        assert view.heard_at <= now
        assert view.beat.slots == view.beat.beat
    assert not fleet.hear(a_beat(beat=fleet.nodes["n1"].beat.beat - 1), now + 1, live=True)
    assert fleet.nodes["n1"].heard_at <= now


def test_a_node_known_from_its_record_alone_gets_no_work_before_it_was_heard() -> None:
    fleet = Fleet()
    assert fleet.hear(a_beat(beat=4), 10.0, live=False)
    assert fleet.nodes["n1"].liveness(10.0, 9.0) is Liveness.SUSPECT
    assert fleet.hear(a_beat(beat=4), 10.5, live=True)
    assert fleet.nodes["n1"].liveness(10.5, 9.0) is Liveness.ALIVE


def test_a_new_boot_forgets_the_old_ones_runs_and_a_straggler_of_the_old_boot_changes_nothing() -> None:
    fleet = Fleet()
    fleet.hear(a_beat(boot="b1", running=[RUN]), 1.0, live=True)
    fleet.nodes["n1"].reserve(OTHER, Hold("m:1"))
    assert fleet.hear(a_beat(boot="b2"), 2.0, live=True)
    assert not fleet.nodes["n1"].runs
    assert not fleet.alive_boot("n1", "b1", 2.0, 0.0)
    assert not fleet.hear(a_beat(boot="b1", beat=99), 2.1, live=True)
    assert fleet.nodes["n1"].beat.boot == "b2"


def test_a_node_whose_clock_was_set_back_is_heard_again_once_its_last_boot_has_died() -> None:
    """Boot ids begin with a time; one from the future must not shut its node out for ever (§7.8)."""
    fleet = Fleet()
    fleet.hear(a_beat(boot="b9"), 1.0, live=True)
    assert not fleet.hear(a_beat(boot="b1"), 2.0, live=True)
    assert fleet.hear(a_beat(boot="b1"), 1.0 + DEAD_S, live=True)
    assert fleet.nodes["n1"].beat.boot == "b1"


# -- liveness ----------------------------------------------------------------------------------------------------------------


@given(st.floats(1, 1000), st.floats(0, 30), st.floats(0, 1000))
def test_liveness_is_silence_counted_from_when_the_router_itself_could_hear(
    heard_at: float, silent: float, connected_at: float
) -> None:
    """Suspect at 5 s, dead at 8 s; all clocks restart when the router's own connection was away."""
    view, now = NodeView("n1", a_beat(), heard_at=heard_at), heard_at + silent
    effective = now - max(heard_at, connected_at)
    wanted = Liveness.DEAD if effective >= DEAD_S else Liveness.SUSPECT if effective >= SUSPECT_S else Liveness.ALIVE
    assert view.liveness(now, connected_at) is wanted


def test_who_was_dead_before_our_own_absence_stays_so_until_it_is_heard() -> None:
    """A reconnect restarts the clocks of the living, or new work would go to the long dead."""
    fleet = Fleet()
    fleet.hear(a_beat("dead"), 1.0, live=True)
    fleet.hear(a_beat("n1"), 19.0, live=True)
    fleet.bury(20.0, 0.0)
    assert [view.liveness(30.0, 29.0) for view in fleet.nodes.values()] == [Liveness.DEAD, Liveness.ALIVE]
    fleet.hear(a_beat("dead", beat=2), 30.0, live=True)
    assert fleet.nodes["dead"].liveness(30.0, 29.0) is Liveness.ALIVE


def test_a_node_that_never_spoke_is_given_the_time_to() -> None:
    fleet = Fleet()
    assert fleet.alive_boot("n1", "b1", 10.0, 5.0)
    assert not fleet.alive_boot("n1", "b1", 5.0 + DEAD_S, 5.0)


@given(st.lists(st.sampled_from(["answered", "nobody", "silent"]), max_size=12))
def test_three_pings_in_a_row_that_nobody_heard_mean_gone_and_slowness_never_does(results: list[str]) -> None:
    fleet = Fleet()
    fleet.hear(a_beat(boot="b1"), 1.0, live=True)
    in_a_row, gone = 0, False
    for result in results:
        said = fleet.ping_result("n1", "b1", answered=result == "answered", nobody=result == "nobody")
        in_a_row = in_a_row + 1 if result == "nobody" else 0
        assert said == (in_a_row >= NO_RESPONDERS_GONE and not gone)
        gone = gone or said
        assert fleet.nodes["n1"].gone == gone
    assert not fleet.ping_result("n1", "older", answered=False, nobody=True)
    fleet.hear(a_beat(boot="b1", beat=2), 2.0, live=True)
    assert not fleet.nodes["n1"].gone
    assert fleet.nodes["n1"].unanswered_pings == 0


# -- slots -------------------------------------------------------------------------------------------------------------------


def test_a_heartbeat_older_than_the_workers_answer_does_not_free_its_run() -> None:
    """`changes`: a heartbeat that was under way when the worker said `running` cannot know of the run."""
    view = a_view(changes=4)
    view.reserve(RUN, Hold("m:1"))
    view.confirm(RUN, "m:1", changes=5)
    view.take(a_beat(beat=2, changes=4), 2.0)
    assert RUN in view.runs
    view.take(a_beat(beat=3, changes=5, running=[RUN]), 3.0)
    assert RUN in view.runs
    view.take(a_beat(beat=4, changes=6), 4.0)
    assert not view.runs


def test_a_run_that_was_ordered_but_not_answered_is_freed_by_no_heartbeat() -> None:
    view = a_view()
    view.reserve(RUN, Hold("m:1"))
    view.take(a_beat(beat=2, changes=50), 2.0)
    assert RUN in view.runs


def test_a_freed_run_is_not_brought_back_by_a_heartbeat_that_was_late() -> None:
    view = a_view(changes=5, running=[RUN])
    view.release(RUN, changes=6)
    assert not view.runs
    view.take(a_beat(beat=2, changes=5, running=[RUN]), 2.0)
    assert not view.runs
    view.take(a_beat(beat=3, changes=6), 3.0)
    assert not view.freed


@pytest.mark.parametrize("heartbeat_first", [True, False])
def test_a_freed_run_is_not_brought_back_by_a_late_answer(heartbeat_first: bool) -> None:
    """`free` overtakes the answer to `run`: they come by different subscriptions."""
    view = a_view(changes=1)
    view.reserve(RUN, Hold("m:1"))
    view.release(RUN, changes=3)
    if heartbeat_first:
        view.take(a_beat(beat=2, changes=3), 2.0)
    view.confirm(RUN, "m:1", changes=2)
    assert not view.runs


def test_a_run_whose_binding_is_gone_is_decided_by_the_next_heartbeat() -> None:
    """Its worker may never say a word about it: the slot must not leak (§7.4)."""
    view = a_view(changes=3)
    view.reserve(RUN, Hold("m:1"))
    view.doubt(RUN)
    assert RUN in view.runs
    view.take(a_beat(beat=2, changes=3), 2.0)
    assert not view.runs


def test_a_run_that_was_listed_once_needs_no_answer_to_be_freed() -> None:
    view = a_view()
    view.reserve(RUN, Hold("m:1"))
    view.take(a_beat(beat=2, changes=1, running=[RUN]), 2.0)
    view.take(a_beat(beat=3, changes=2), 3.0)
    assert not view.runs


def test_what_others_have_started_counts_as_well() -> None:
    view = a_view(running=[RUN])
    view.reserve(RUN, Hold("m:1"))
    view.reserve(OTHER, Hold("m:1"))
    assert set(view.runs) == {RUN, OTHER}


def test_a_model_counts_as_loading_until_it_is_in_memory_or_its_run_decodes() -> None:
    view = a_view(loaded=())
    view.reserve(RUN, Hold("m:1"))
    assert view.loading == {"m:1"}
    view.take(a_beat(beat=2, changes=1, running=[RUN], loaded=(), phase=Phase.WAITING), 2.0)
    assert view.loading == {"m:1"}
    view.take(a_beat(beat=3, changes=1, running=[RUN], loaded=(), phase=Phase.DECODING), 3.0)
    assert not view.loading


def test_what_leaves_for_a_load_is_no_longer_counted_on_and_comes_back_if_the_load_does_not() -> None:
    view = a_view(slots=2, models=("m:1", "x:1"), loaded=("x:1",))
    view.reserve(RUN, Hold("m:1", ready_at=12.0, ends_at=20.0, evict=("x:1",)))
    assert (view.loading, view.resident, view.loaded) == ({"m:1"}, frozenset(), {"x:1"})
    assert view.ready_at("m:1", 10.0) == 12.0
    assert view.frees_at(10.0, 5.0) == 10.0
    view.withdraw(RUN)
    assert (view.loading, view.resident) == (frozenset(), {"x:1"})


def test_a_load_without_a_job_takes_no_slot_but_counts_as_loading() -> None:
    view = a_view(slots=1, models=("m:1", "x:1"), loaded=("x:1",))
    view.preload("m:1", Preload(ready_at=12.0, evict=("x:1",)))
    assert (view.loading, view.resident, view.free_slots) == ({"m:1"}, frozenset(), 1)
    assert view.ready_at("m:1", 10.0) == 12.0
    view.take(a_beat(beat=2, loaded=("m:1",), models=("m:1", "x:1")), 12.0)
    assert (view.loading, view.resident) == (frozenset(), {"m:1"})
    view.preload_ended("m:1")
    assert not view.preload_failed("m:1", 12.0)
    assert view.loaded_at == {"m:1": 12.0}


def test_a_load_that_failed_is_known_for_two_minutes() -> None:
    view = a_view(loaded=())
    view.preload("m:1", Preload(ready_at=12.0))
    view.preload_ended("m:1", failed_at=15.0)
    assert not view.loading
    assert view.preload_failed("m:1", 15.0 + PRELOAD_RETRY_S - 1)
    assert not view.preload_failed("m:1", 15.0 + PRELOAD_RETRY_S)
    assert not view.preload_failed("x:1", 15.0)


def test_a_slot_is_free_when_the_first_run_ends_a_model_idle_when_its_last_does() -> None:
    view = a_view(slots=2)
    view.reserve(RUN, Hold("m:1", ends_at=30.0))
    view.reserve(OTHER, Hold("m:1"))
    assert view.frees_at(10.0, 7.0) == 17.0
    assert view.frees_at(10.0, 70.0) == 30.0
    assert view.frees_at(40.0, 70.0) == 40.0  # it is late: any moment
    assert view.busy_with("m:1", 10.0, 70.0) == 80.0
    assert view.busy_with("x:1", 10.0, 70.0) == 10.0


class Worker:
    """The slot table of one boot, and everything it has ever said about it, to be delivered late or never."""

    def __init__(self) -> None:
        self.changes, self.beats = 0, 0
        self.running: set[int] = set()
        self.ended: set[int] = set()
        self.said: list[tuple[str, int, object]] = []

    def begin(self, n: int) -> None:
        if n not in self.running and n not in self.ended:
            self.running.add(n)
            self.changes += 1
        if n in self.running:
            self.said.append(("running", n, self.changes))
        else:
            self.said.append(("free", n, self.changes))

    def end(self, n: int) -> None:
        if n in self.running:
            self.running.discard(n)
            self.ended.add(n)
            self.changes += 1
            self.said.append(("free", n, self.changes))

    def beat(self) -> None:
        self.beats += 1
        runs = [(a_key(f"r{n}"), n) for n in sorted(self.running)]
        self.said.append(("beat", 0, a_beat(beat=self.beats + 1, changes=self.changes, running=runs)))


deeds = st.lists(
    st.tuples(st.sampled_from(["begin", "begin", "end", "beat", "hear", "hear", "hear", "lose"]), st.integers(0, 30)),
    max_size=40,
)


@given(deeds)
def test_whatever_is_late_or_lost_slots_are_neither_leaked_nor_given_twice(taken: list[tuple[str, int]]) -> None:
    """Words of one worker arrive in any order, or not at all. At all times what it runs and has confirmed counts;
    and once everybody has spoken, exactly what it runs."""
    worker, fleet = Worker(), Fleet()
    fleet.hear(a_beat(beat=1), 0.0, live=True)
    view = fleet.nodes["n1"]

    def hear(said: tuple[str, int, object]) -> None:
        what, n, content = said
        run = (a_key(f"r{n}"), n)
        if what == "beat":
            fleet.hear(content, 1.0, live=True)  # type: ignore[arg-type]
        elif what == "running":
            view.confirm(run, "m:1", content)  # type: ignore[arg-type]
        else:
            view.release(run, content)  # type: ignore[arg-type]

    ordered: set[int] = set()
    for deed, n in taken:
        match deed:
            case "begin":
                run = (a_key(f"r{n % 3}"), n % 3)
                if n % 3 not in ordered:  # an epoch is ordered by its binding, once; asking again holds nothing
                    ordered.add(n % 3)
                    view.reserve(run, Hold("m:1"))
                worker.begin(n % 3)
            case "end":
                worker.end(n % 3)
            case "beat":
                worker.beat()
            case "hear" | "lose" if worker.said:
                said = worker.said.pop(n % len(worker.said))
                if deed == "hear":
                    hear(said)
        assert {run[1] for run in view.runs} >= worker.running
    for said in worker.said:
        hear(said)
    for n in ordered:  # the controller asks until it was answered
        worker.begin(n)
        hear(worker.said[-1])
    worker.beat()
    hear(worker.said[-1])
    assert {run[1] for run in view.runs} == worker.running


# -- set aside ---------------------------------------------------------------------------------------------------------------

events = st.lists(
    st.one_of(
        st.tuples(st.just("failed"), st.integers(0, 19)),
        st.tuples(st.just("succeeded"), st.just(0)),
        st.tuples(st.just("later"), st.integers(0, 400)),
    ),
    max_size=40,
)


@given(events)
def test_a_node_is_set_aside_by_different_jobs_in_a_row_and_never_for_ever(events) -> None:  # type: ignore[no-untyped-def]
    """Written down once more: the distinct jobs since the last success decide, and how long."""
    view, now, failing, until = a_view(), 100.0, set(), 0.0
    keys = [a_key(f"job_{n}") for n in range(20)]
    for what, n in events:
        match what:
            case "failed":
                view.failed(keys[n], now)
                failing.add(n)
                if len(failing) >= FAILED_JOBS:
                    until = now + min(MAX_SET_ASIDE_S, SET_ASIDE_S * 2 ** (len(failing) - FAILED_JOBS))
            case "succeeded":
                view.succeeded()
                failing, until = set(), 0.0
            case "later":
                now += n
        assert (view.set_aside_until > now) is (until > now)
        assert view.set_aside_until == until
        assert view.set_aside_until - now <= MAX_SET_ASIDE_S
        assert len(view.failing) <= MAX_FAILING


def test_one_job_alone_sets_no_node_aside_however_often_it_fails() -> None:
    """It may be poison."""
    view = a_view()
    for now in range(20):
        view.failed(RUN[0], now)
        view.failed(OTHER[0], now)
    assert view.set_aside_until == 0.0


def test_a_new_boot_starts_without_a_record() -> None:
    fleet = Fleet()
    fleet.hear(a_beat(boot="b1"), 1.0, live=True)
    for n in range(FAILED_JOBS):
        fleet.nodes["n1"].failed(a_key(f"job_{n}"), 1.0)
    assert fleet.nodes["n1"].set_aside_until > 1.0
    fleet.hear(a_beat(boot="b2"), 2.0, live=True)
    assert fleet.nodes["n1"].set_aside_until == 0.0
