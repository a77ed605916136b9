"""The rolling minute, function by function; the machine in test_keeper_machine.py holds the whole against a list of times."""

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.limits.rolling import (
    COUNTS_MS,
    LEASE_MS,
    Instant,
    Lease,
    Rolling,
    Spent,
    close,
    counted,
    forget,
    free_at,
    full_at,
    lease,
    wanted,
)

T = 1_000_000_000_000


def at(ms: int) -> Instant:
    return Instant(T + ms, T + ms)


def test_a_lease_counts_in_full_until_its_holder_says_what_it_spent() -> None:
    rolling = Rolling()
    assert lease(rolling, "a", "1", limit=10, count=4, now=at(0)) == 4
    assert lease(rolling, "b", "2", limit=10, count=9, now=at(1)) == 6, "what is left"
    assert lease(rolling, "c", "3", limit=10, count=1, now=at(2)) == 0
    close(rolling, "a", "1", 1)
    assert counted(rolling) == 7
    assert lease(rolling, "c", "3", limit=10, count=9, now=at(3)) == 3


def test_a_report_made_twice_counts_once_and_one_of_an_unknown_lease_is_not_believed() -> None:
    rolling = Rolling(leases={"a": Lease("1", 5, T)})
    close(rolling, "a", "1", 3)
    close(rolling, "a", "1", 3)
    assert counted(rolling) == 3
    rolling.leases["a"] = Lease("2", 5, T)
    close(rolling, "a", "1", 3)  # its holder never heard of lease 2
    assert (counted(rolling), rolling.leases) == (3, {})


def test_what_was_spent_counts_with_the_time_of_its_lease_and_seconds_are_put_together() -> None:
    rolling = Rolling(leases={"a": Lease("1", 5, T + 100), "b": Lease("2", 5, T + 900), "c": Lease("3", 5, T + 1100)})
    close(rolling, "b", "2", 2)
    close(rolling, "a", "1", 1)
    close(rolling, "c", "3", 1)
    assert rolling.spent == [Spent(T + 900, 3), Spent(T + 1100, 1)]


def test_a_permit_is_forgotten_only_when_even_the_slowest_clock_says_so() -> None:
    rolling = Rolling(spent=[Spent(T, 1)], leases={"a": Lease("1", 2, T)})
    forget(rolling, Instant(T + COUNTS_MS - 1, T + COUNTS_MS + 5000))
    assert counted(rolling) == 3
    forget(rolling, at(COUNTS_MS))
    assert counted(rolling) == 0


def test_what_begins_to_count_does_so_by_the_latest_that_it_can_be() -> None:
    rolling = Rolling()
    lease(rolling, "a", "1", limit=10, count=4, now=Instant(T, T + 7))
    assert rolling.leases["a"] == Lease("1", 4, T + 7)


def test_when_there_is_more_and_when_there_is_all() -> None:
    rolling = Rolling(spent=[Spent(T + 5000, 2), Spent(T, 3)], leases={"a": Lease("1", 1, T + 2000)})
    assert free_at(rolling, 7) is None
    assert free_at(rolling, 6) == T + COUNTS_MS
    assert free_at(rolling, 3) == T + 2000 + COUNTS_MS, "the limit was lowered meanwhile"
    assert free_at(rolling, 1) == T + 5000 + COUNTS_MS
    assert free_at(Rolling(), 1) is None
    assert full_at(rolling) == T + 5000 + COUNTS_MS
    assert full_at(Rolling()) is None


def test_a_lease_is_a_quarter_of_a_second_s_worth_or_what_is_asked_for_at_once() -> None:
    assert [wanted(60, 1), wanted(60, 5), wanted(2400, 1), wanted(2400, 50)] == [1, 5, 10, 50]


@given(
    limit=st.integers(1, 50),
    steps=st.lists(
        st.tuples(st.integers(0, 20_000), st.sampled_from("abc"), st.integers(1, 60), st.floats(0, 1)), max_size=60
    ),
)
def test_leases_of_any_61_seconds_never_exceed_the_limit(limit: int, steps: list[tuple[int, str, int, float]]) -> None:
    """Of each only what its holder says it spent, once it has said so."""
    rolling, now, granted = Rolling(), 0, [(0, "", 0)]
    spent: dict[str, int] = {}
    for later, holder, count, share in steps:
        now += later
        forget(rolling, at(now))
        if holder in spent:
            number_before = spent.pop(holder)
            at_ms, _, permits = granted[number_before]
            used = int(permits * share)
            granted[number_before] = (at_ms, holder, used)
            close(rolling, holder, str(number_before), used)
        got = lease(rolling, holder, str(len(granted)), limit=limit, count=count, now=at(now))
        assert got <= count
        if got:
            spent[holder] = len(granted)
            granted.append((now, holder, got))
        window = sum(permits for at_ms, _, permits in granted[1:] if at_ms > now - 60_000 - LEASE_MS)
        assert window <= limit
        if got < count:
            assert counted(rolling) == limit, "nothing is kept back"
