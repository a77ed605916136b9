"""What a boot remembers, its log of tokens, and its sight of the server's clock."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from libs.common.contracts.control import RunAnswer, RunStatus
from libs.common.contracts.events import Event, line
from libs.common.contracts.subjects import JobKey
from services.worker import memory as memory_module
from services.worker.clock import WINDOW_S, ServerClock
from services.worker.memory import CLOCK_ERROR_MS, REMEMBER_MS, Memory, RunKey
from services.worker.tokenlog import TokenLog


def key(n: int) -> RunKey:
    return JobKey("client", f"job{n}"), n


def answer(reason: str = "") -> RunAnswer:
    return RunAnswer(status=RunStatus.FINISHED, changes=0, reason=reason)


def test_the_first_ending_stays() -> None:
    """A cancel that came before the run is how that run ended, whatever is said later."""
    memory = Memory()
    memory.remember(key(1), answer("first"), 1000)
    memory.remember(key(1), answer("second"), 2000)
    assert memory.recall(key(1)) == answer("first")


def test_a_new_memory_refuses_nothing() -> None:
    """No binding can name this boot and be older than it."""
    assert not Memory().too_old(0, now_ms=10**12)


def test_it_forgets_after_an_hour_and_refuses_what_it_may_have_forgotten() -> None:
    memory = Memory()
    memory.remember(key(1), answer(), 1000)
    assert not memory.too_old(0, now_ms=1000 + REMEMBER_MS)
    assert memory.recall(key(1)) is not None
    assert memory.too_old(1000, now_ms=1001 + REMEMBER_MS)
    assert memory.recall(key(1)) is None
    assert not memory.too_old(1000 + CLOCK_ERROR_MS, now_ms=1001 + REMEMBER_MS)


def test_it_forgets_the_oldest_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "MAX_REMEMBERED", 3)
    memory = Memory()
    for n in range(5):
        memory.remember(key(n), answer(), 100_000 * (n + 1))
    assert len(memory) == 3
    assert [memory.recall(key(n)) is not None for n in range(5)] == [False, False, True, True, True]
    assert memory.too_old(200_000, now_ms=500_000)
    assert not memory.too_old(300_000, now_ms=500_000)


class AtMostOnce(RuleBasedStateMachine):
    """However long and however often it is asked, a boot carries no binding out twice (DESIGN §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self.now = 1_000_000
        self.bound_at: dict[int, int] = {}
        self.ran: dict[int, int] = {}

    @rule(seconds=st.integers(0, 5000))
    def wait(self, seconds: int) -> None:
        self.now += seconds * 1000

    @rule()
    def bind(self) -> None:
        self.bound_at[len(self.bound_at)] = self.now

    @rule(n=st.integers(0, 30), error_ms=st.integers(0, CLOCK_ERROR_MS))
    def ask(self, n: int, error_ms: int) -> None:
        """As Runs does: recalled, or refused, or carried out; our sight of the time lags behind the server's."""
        if n not in self.bound_at or self.memory.recall(key(n)) is not None:
            return
        if self.memory.too_old(self.bound_at[n], self.now - error_ms):
            return
        self.ran[n] = self.ran.get(n, 0) + 1
        self.memory.remember(key(n), answer(), self.now - error_ms)

    @invariant()
    def nothing_ran_twice(self) -> None:
        assert all(times == 1 for times in self.ran.values())


class AtMostOnceWithASmallMemory(AtMostOnce):
    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(memory_module, "MAX_REMEMBERED", 3)

    def teardown(self) -> None:
        self._patch.undo()


AtMostOnce.TestCase.settings = settings(max_examples=40, deadline=None)
AtMostOnceWithASmallMemory.TestCase.settings = settings(max_examples=40, deadline=None)
TestAtMostOnce = AtMostOnce.TestCase
TestAtMostOnceWithASmallMemory = AtMostOnceWithASmallMemory.TestCase


@given(
    carried=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    offset=st.integers(0, 500),
    limit=st.one_of(st.none(), st.integers(0, 500)),
)
def test_a_log_is_the_carried_text_and_then_its_events(
    carried: list[str], texts: list[str], offset: int, limit: int | None
) -> None:
    """Positions are byte offsets; what was written never changes."""
    before = b"".join(line(Event(text=text)) for text in carried)
    log, whole = TokenLog(before), before
    for text in texts:
        log.append(Event(text=text))
        whole += line(Event(text=text))
        assert len(log) == len(whole)
    assert log.read(0) == whole
    assert log.read(offset, limit) == whole[offset : None if limit is None else offset + limit]


class Time:
    def __init__(self) -> None:
        self.monotonic_s, self.wall_s = 50.0, 2_000_000.0

    def clock(self) -> ServerClock:
        return ServerClock(monotonic=lambda: self.monotonic_s, wall=lambda: self.wall_s)


def test_until_the_servers_time_was_seen_the_own_clock_has_to_do() -> None:
    assert Time().clock().now_ms() == 2_000_000_000


def test_the_best_sight_of_the_servers_clock_counts() -> None:
    """A timestamp is always older than the moment at which it is read."""
    time = Time()
    clock = time.clock()
    clock.learn(7_000_000)
    time.monotonic_s += 10
    assert clock.now_ms() == 7_010_000
    clock.learn(7_009_000)  # read late
    assert clock.now_ms() == 7_010_000
    clock.learn(7_010_400)
    assert clock.now_ms() == 7_010_400


def test_a_drift_between_two_machines_does_not_add_up_over_weeks() -> None:
    """Our monotonic clock runs 100 ppm fast, a minute a week; a sight a minute keeps us within half a second."""
    time = Time()
    clock = time.clock()
    server_s = 7_000_000.0
    for _ in range(7 * 24 * 60):
        clock.learn(int(server_s * 1000))
        assert abs(clock.now_ms() - server_s * 1000) < 2 * WINDOW_S * 100e-6 * 1000 + 10
        time.monotonic_s += 60 * (1 + 100e-6)
        server_s += 60


def test_one_late_sight_at_the_edge_of_a_window_does_not_set_the_clock_back() -> None:
    time = Time()
    clock = time.clock()
    clock.learn(7_000_000)
    time.monotonic_s += WINDOW_S + 1
    clock.learn(7_000_000)  # ten minutes late
    assert clock.now_ms() == 7_000_000 + int((WINDOW_S + 1) * 1000)


def test_the_memory_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weeks of work at 200 jobs a second do not grow it."""
    monkeypatch.setattr(memory_module, "MAX_REMEMBERED", 1000)
    memory: Any = Memory()
    for n in range(5000):
        memory.remember(key(n), answer(), n * 5)
    assert len(memory) == 1000
