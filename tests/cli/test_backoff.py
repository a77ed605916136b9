"""When a process that died is started again."""

from hypothesis import given
from hypothesis import strategies as st

from libs.cli.up.backoff import FIRST_S, LONGEST_S, STEADY_S, next_delay


def test_delays_double_from_half_a_second_to_ten():
    delays = [delay := next_delay(None, ran_s=0)]
    for _ in range(6):
        delays.append(delay := next_delay(delay, ran_s=1))

    assert delays == [0.5, 1, 2, 4, 8, 10, 10]


@given(previous=st.none() | st.floats(FIRST_S, LONGEST_S), ran_s=st.floats(0, 1e6))
def test_a_delay_is_never_shorter_or_longer_than_declared_and_a_steady_run_resets_it(
    previous: float | None, ran_s: float
):
    delay = next_delay(previous, ran_s=ran_s)

    assert FIRST_S <= delay <= LONGEST_S
    assert delay == FIRST_S or ran_s < STEADY_S
