"""Tokens of a minute, a day and a month, function by function."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.clients import Limits
from libs.common.contracts.jobs import Completion, PastEpoch, Submission, Usage
from libs.common.contracts.requests import Kind
from libs.common.states import JobState
from services.gateway.limits import budgets
from services.gateway.limits.budgets import Ask, Budgets, Full, Open, Short, Uncounted, Window
from services.gateway.limits.rolling import Instant

MINUTE = 60_000


def instant(text: str) -> Instant:
    ms = int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)
    return Instant(ms, ms + 3)


def at(text: str) -> Budgets:
    made = Budgets()
    budgets.roll(made, instant(text), ALL)
    return made


def ask(op: str, prompt: int = 10, output: int | None = 90, *, cap: int = 1000, lives_s: float = 3600) -> Ask:
    return Ask(op, f"job_{op}", prompt, output, cap, lives_s)


ALL = Limits(tokens_per_minute=250, tokens_per_day=1000, tokens_per_month=5000)


def test_what_a_job_may_cost_is_taken_from_all_windows_and_the_first_that_is_short_refuses() -> None:
    made = at("2026-11-23T12:00:30")
    assert [budgets.reserve(made, ALL, ask(op)) for op in "ab"] == [100, 100]
    assert (made.minute, made.day, made.month) == (200, 200, 200)
    until = int(datetime(2026, 11, 23, 12, 1, tzinfo=UTC).timestamp() * 1000)
    assert budgets.reserve(made, ALL, ask("c")) == Short(Window.MINUTE, until, 100, 50, 250, held=200)
    assert budgets.reserve(made, ALL, ask("d", 10, 40)) == 50
    assert made.minute == 250


def test_the_last_token_may_be_used_and_not_one_more() -> None:
    made = at("2026-11-23T12:00:30")
    assert isinstance(budgets.reserve(made, Limits(tokens_per_day=99), ask("a")), Short)
    assert budgets.reserve(made, Limits(tokens_per_day=100), ask("a")) == 100
    assert isinstance(budgets.reserve(made, Limits(tokens_per_day=100), ask("b", 0, 1)), Short)


def test_a_reservation_made_twice_counts_once() -> None:
    made = at("2026-11-23T12:00:30")
    assert [budgets.reserve(made, ALL, ask("a")) for _ in range(3)] == [100, 100, 100]
    assert made.day == 100


def test_an_answer_without_a_known_end_takes_the_cap_or_alone_what_is_left() -> None:
    made, limits = at("2026-11-23T12:00:30"), Limits(tokens_per_day=1500)
    assert budgets.reserve(made, limits, ask("a", 10, None)) == 1010
    short = budgets.reserve(made, limits, ask("b", 10, None))
    assert isinstance(short, Short), "another one could overshoot as well"
    assert (short.asked, short.left) == (1010, 490)
    budgets.settle(made, "a", 1300)
    assert budgets.reserve(made, limits, ask("c", 10, None)) == 200
    budgets.settle(made, "c", 195)
    assert isinstance(budgets.reserve(made, limits, ask("d", 10, None)), Short), "not even its prompt fits"


def test_an_answer_that_is_made_twice_takes_twice() -> None:
    made, limits = at("2026-11-23T12:00:30"), Limits(tokens_per_day=500)
    assert budgets.reserve(made, limits, ask("a", 10, 90)._replace(answers=2)) == 190
    budgets.settle(made, "a", 190)
    assert budgets.reserve(made, limits, ask("b", 10, None)._replace(answers=2)) == 310
    budgets.settle(made, "b", 299)
    short = budgets.reserve(made, limits, ask("c", 10, None)._replace(answers=2))
    assert short == Short(Window.DAY, budgets.ends_ms(made.now, Window.DAY), 12, 11, 500)


def test_an_embedding_reserves_its_prompt() -> None:
    made = at("2026-11-23T12:00:30")
    assert budgets.reserve(made, ALL, ask("a", 30, 0)) == 30


@pytest.mark.parametrize(
    ("then", "left"),
    [
        ("2026-11-23T12:00:59.999", (40, 40, 40)),
        ("2026-11-23T12:01:00", (0, 40, 40)),
        ("2026-11-24T00:00:00", (0, 0, 40)),
        ("2026-12-01T00:00:00", (0, 0, 0)),
        ("2027-11-23T12:00:30", (0, 0, 0)),
    ],
)
def test_a_job_is_settled_in_the_windows_that_it_was_reserved_in(then: str, left: tuple[int, int, int]) -> None:
    made = at("2026-11-23T12:00:30")
    budgets.reserve(made, ALL, ask("a"))
    budgets.roll(made, instant(then), ALL)
    assert budgets.settle(made, "a", 40)
    assert (made.minute, made.day, made.month) == left
    assert not budgets.settle(made, "a", 40), "twice is once"
    assert (made.minute, made.day, made.month) == left


def test_the_same_day_of_another_month_and_the_same_month_of_another_year_are_others() -> None:
    made = at("2026-11-23T12:00:30")
    budgets.reserve(made, ALL, ask("a"))
    budgets.roll(made, instant("2027-11-23T12:00:30"), ALL)
    assert made.month == 0


def test_time_that_goes_back_opens_no_window_anew() -> None:
    made = at("2026-11-24T00:00:01")
    budgets.reserve(made, ALL, ask("a"))
    budgets.roll(made, instant("2026-11-23T23:59:59"), ALL)
    assert (made.minute, made.day) == (100, 100)
    budgets.roll(made, instant("2026-11-24T00:00:30"), ALL)
    assert (made.minute, made.day) == (100, 100)


def test_a_job_of_which_nobody_knows_any_more_cost_what_was_reserved() -> None:
    made = at("2026-11-23T12:00:30")
    budgets.reserve(made, ALL, ask("a"))
    assert budgets.settle(made, "a", None)
    assert (made.day, made.open) == (100, {})


def test_a_prompt_that_no_node_counted_costs_what_was_reserved_for_it() -> None:
    made = at("2026-11-23T12:00:30")
    for op, written in (("a", 400), ("b", 30)):
        budgets.reserve(made, ALL, ask(op, 10, 90))
        budgets.settle(made, op, Uncounted(written))
    assert (made.day, made.day_more) == (100 + 40, 0)


@pytest.mark.parametrize(
    ("now", "limits", "held"),
    [
        ("2026-11-23T12:00:59", Limits(tokens_per_minute=150), 100),
        ("2026-11-23T23:00:00", Limits(tokens_per_day=150), 100),
        ("2026-11-24T12:00:00", Limits(tokens_per_month=150), 100),
        ("2026-11-23T12:01:00", Limits(tokens_per_minute=99), 0),
        ("2026-11-24T12:00:00", Limits(tokens_per_day=99), 0),
        ("2026-12-01T00:00:00", Limits(tokens_per_month=99), 0),
    ],
)
def test_who_is_refused_hears_what_open_jobs_hold_of_this_window(now: str, limits: Limits, held: int) -> None:
    made = at("2026-11-23T12:00:30")
    budgets.reserve(made, ALL, ask("a"))
    budgets.roll(made, instant(now), limits)
    refused = budgets.reserve(made, limits, ask("b"))
    assert isinstance(refused, Short)
    assert refused.held == held


def test_what_open_jobs_hold_does_not_help_who_is_over() -> None:
    made = at("2026-11-23T12:00:30")
    budgets.reserve(made, ALL, ask("a", 0, 90))
    budgets.reserve(made, ALL, ask("b", 0, 60))
    budgets.settle(made, "a", 90)
    refused = budgets.reserve(made, Limits(tokens_per_day=100), ask("c", 0, 60))
    assert isinstance(refused, Short)
    assert (refused.left, refused.held) == (0, 10), "what is there when all is given back"


def test_so_many_jobs_may_wait_and_what_a_node_has_does_not() -> None:
    made, limits = at("2026-11-23T12:00:30"), Limits(queued=2)
    asks = [ask(op, 0, 0) for op in "abc"]
    assert [budgets.reserve(made, limits, each) for each in asks] == [0, 0, Full(2)]
    assert budgets.started(made, "a")
    assert not budgets.started(made, "a")
    assert "a" not in made.open, "without tokens nothing is left to settle"
    assert budgets.reserve(made, limits, asks[2]) == 0
    both = Limits(queued=2, tokens_per_day=1000)
    made = at("2026-11-23T12:00:30")
    budgets.reserve(made, both, ask("a"))
    assert budgets.started(made, "a")
    assert made.open["a"] == Open("job_a", 100, made.now, made.now + 60, waits=False)


def test_there_is_an_end_to_what_one_record_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "MAX_OPEN", 2)
    made = at("2026-11-23T12:00:30")
    limits = Limits(tokens_per_month=10**9)
    assert [budgets.reserve(made, limits, ask(op)) for op in "abc"] == [100, 100, Full(2)]


def test_when_windows_end() -> None:
    minute = instant("2026-12-31T23:59:10").earliest // MINUTE
    midnight = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp() * 1000)
    assert [budgets.ends_ms(minute, window) for window in Window] == [midnight] * 3
    minute = instant("2026-01-31T10:00:00").earliest // MINUTE
    assert budgets.ends_ms(minute, Window.DAY) == instant("2026-02-01T00:00:00").earliest
    assert budgets.ends_ms(minute, Window.MONTH) == instant("2026-02-01T00:00:00").earliest


def done(**more: object) -> Completion:
    job = Submission(
        op_id="a", kind=Kind.CHAT, model="m", route="/jobs", deadline_s=1, result_ttl_s=1, size=1, digest="", prompt_tokens=50
    )  # fmt: skip
    fields = {"op_id": "x", "job": job, "submitted": 1, "created_ms": 0, "state": JobState.CANCELLED, "epoch": 1}
    return Completion(**(fields | {"finished_ms": 2} | more))  # type: ignore[arg-type]


def test_what_a_job_cost() -> None:
    assert budgets.cost(done(usage=Usage(prompt_tokens=7, completion_tokens=5))) == 12
    assert budgets.cost(done(log_size=200)) == 0, "it never ran"
    assert budgets.cost(done(node="n")) == Uncounted(0), "perhaps it had read the prompt"
    assert budgets.cost(done(past=(PastEpoch(epoch=1, base=26),), log_size=26)) == Uncounted(2), (
        "an earlier node had it"
    )
    assert budgets.cost(done(usage=Usage(prompt_tokens=0, completion_tokens=5))) == Uncounted(5), (
        "Ollama leaves out what is 0"
    )
    assert budgets.cost(done(started_ms=1, log_size=1300)) == Uncounted(100), "cut off: what it had written is not free"


@given(
    limit=st.integers(1, 2000) | st.integers(1, 300),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["reserve", "settle"]), st.integers(0, 9), st.integers(0, 500), st.none() | st.integers(0, 500),
            st.sampled_from([0, 1, 59, 61, 3600, 86_400]),
        ),
        max_size=50,
    ),
)  # fmt: skip
def test_sums_are_those_of_the_jobs_and_what_passed_a_limit_is_missing_afterwards(
    limit: int, steps: list[tuple[str, int, int, int | None, int]]
) -> None:
    made, now = Budgets(), instant("2026-11-30T12:00:30").earliest
    limits = Limits(tokens_per_day=limit)
    first_day = now // (1440 * MINUTE)
    reserved: dict[str, tuple[int, int]] = {}  # op → (minute, tokens), open ones
    charged: dict[
        int, int
    ] = {}  # by minute: what jobs took, and gave back; what they took beyond that, when it was known
    beyond = 0
    for number, (what, which, prompt, other, later_s) in enumerate(steps):
        now += later_s * 1000
        budgets.roll(made, Instant(now, now), limits)
        if what == "reserve":
            got = budgets.reserve(made, limits, ask(f"op{number}", prompt, other, cap=300))
            if isinstance(got, int):
                reserved[f"op{number}"] = (made.now, got)
                charged[made.now] = charged.get(made.now, 0) + got
                assert made.day <= limit
        elif reserved:
            op = list(reserved)[which % len(reserved)]
            minute, tokens = reserved.pop(op)
            assert budgets.settle(made, op, other)
            more = 0 if other is None else other - tokens
            at_minute = made.now if more > 0 else minute
            charged[at_minute] = charged.get(at_minute, 0) + more
            beyond += max(0, more)
        assert made.minute == charged.get(made.now, 0), "without a limit nothing is owed"
        today = sum(tokens for minute, tokens in charged.items() if minute // 1440 == made.now // 1440)
        earlier = sum(tokens for minute, tokens in charged.items() if minute // 1440 < made.now // 1440)
        owed = made.day - today
        assert 0 <= owed <= beyond
        assert earlier <= limit * (made.now // 1440 - first_day) + owed, "all days together are within their limits"
        assert made.day <= limit + beyond
        assert set(made.open) == set(reserved)


def test_by_what_a_window_was_passed_the_next_one_is_shorter() -> None:
    made, limits = at("2026-11-23T12:00:30"), Limits(tokens_per_minute=100, tokens_per_day=1000)
    budgets.reserve(made, limits, ask("a"))
    budgets.settle(made, "a", 350)
    assert (made.minute, made.day) == (350, 350)
    in_four = instant("2026-11-23T12:04:00").earliest
    assert budgets.reserve(made, limits, ask("b", 10, 41)) == Short(Window.MINUTE, in_four, 51, 0, 100)
    assert budgets.reserve(made, limits, ask("b", 10, 40)) == Short(Window.MINUTE, in_four - MINUTE, 50, 0, 100)
    too_much = budgets.reserve(made, limits, ask("b", 10, 91))
    assert too_much == Short(Window.MINUTE, in_four - 3 * MINUTE, 101, 0, 100), "it never fits"
    budgets.roll(made, instant("2026-11-23T12:01:00"), limits)
    assert (made.minute, made.day) == (250, 350)
    budgets.roll(made, instant("2026-11-23T12:03:00"), limits)
    assert made.minute == 50
    assert isinstance(budgets.reserve(made, limits, ask("b", 10, 41)), Short)
    assert budgets.reserve(made, limits, ask("b", 10, 40)) == 50
    budgets.settle(made, "b", 900)
    assert made.day == 1250
    budgets.roll(made, instant("2026-11-24T12:03:00"), limits)
    assert (made.minute, made.day) == (0, 250)
    budgets.roll(made, instant("2026-11-25T12:03:00"), limits)
    assert made.day == 0


def test_what_a_lowered_limit_allowed_before_is_not_missing_afterwards() -> None:
    made = at("2026-11-23T12:00:30")
    budgets.reserve(made, Limits(tokens_per_month=5000), ask("a", 10, 3990))
    budgets.settle(made, "a", 4010)
    lower = Limits(tokens_per_month=100)
    budgets.roll(made, instant("2026-12-01T00:00:00"), lower)
    assert made.month == 10
    budgets.roll(made, instant("2027-01-01T00:00:00"), Limits())
    assert made.month == 0
