from services.gateway.limits import pace
from services.gateway.limits.pace import BURST, READS_PER_S, Pace


def test_after_a_burst_reads_come_as_fast_as_they_may_and_no_faster() -> None:
    made = Pace()
    assert [made.late_s("a", 100.0) for _ in range(BURST)] == [0.0] * BURST
    late = made.late_s("a", 100.0)
    assert abs(late - 1 / READS_PER_S) < 1e-6
    assert made.late_s("a", 100.0) == late, "who is refused is not put off further"
    assert made.late_s("b", 100.0) == 0.0
    assert made.late_s("a", 100.0 + late + 1e-6) == 0.0
    assert made.late_s("a", 100.0 + late + 1e-6) > 0.0


def test_streams_of_long_ago_are_forgotten() -> None:
    made = Pace()
    for n in range(pace.MAX_KNOWN):
        made.late_s(str(n), 100.0)
    made.late_s("one more", 200.0)
    assert list(made._through_at) == ["one more"]
