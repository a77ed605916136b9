"""keep_alive and Go durations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.ollama_sim.durations import FOREVER, BadDuration, parse_go_duration, parse_keep_alive


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (300, 300.0),
        (0.5, 0.5),
        (0, 0.0),
        ("0", 0.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
    ],
)
def test_numbers_count_seconds_and_strings_carry_units(value: object, seconds: float) -> None:
    assert parse_keep_alive(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [-1, -0.5, "-1m", "-1h2m"])
def test_anything_negative_means_for_ever(value: object) -> None:
    assert parse_keep_alive(value) == FOREVER


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("300", 'time: missing unit in duration "300"'),
        ("-1", 'time: missing unit in duration "-1"'),
        ("5 m", 'time: unknown unit " m" in duration "5 m"'),
        ("", 'time: invalid duration ""'),
        ("m", 'time: invalid duration "m"'),
        (True, "Unsupported type: 'bool'"),
        ([1], "Unsupported type: '[]interface {}'"),
    ],
)
def test_the_rest_is_refused_in_the_words_of_go(value: object, text: str) -> None:
    with pytest.raises(BadDuration) as refused:
        parse_keep_alive(value)
    assert str(refused.value) == text


@given(st.text(max_size=12))
def test_any_text_is_a_number_of_seconds_or_refused(text: str) -> None:
    try:
        seconds = parse_go_duration(text)
    except BadDuration:
        return
    assert isinstance(seconds, float)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_parts_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert parse_go_duration(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds
