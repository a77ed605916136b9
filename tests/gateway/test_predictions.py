"""When a place in the queue is news, and how often it is looked at."""

import pytest

from libs.common.contracts.control import PlaceAnswer, QuoteAnswer
from services.gateway.job_events import look_again_s
from services.gateway.predictions import is_news, too_late
from tests.gateway.scripted import submission


def at(position: int | None, start_s: float | None = None) -> PlaceAnswer:
    return PlaceAnswer(position=position, start_s=start_s)


@pytest.mark.parametrize(
    ("before", "now", "elapsed_s", "told"),
    [
        (None, at(3), 2, True),
        (at(3), None, 2, False),
        (None, None, 2, False),
        (at(3), at(None), 2, False),
        (at(3), at(3), 2, False),
        (at(3), at(2), 2, True),
        (at(3), at(4), 2, True),
        (at(3), at(3, 10), 2, True),
        (at(3, 10), at(3), 2, True),
        (at(3, 60), at(3, 58), 2, False),  # time passes, as was said
        (at(3, 60), at(3, 50), 10, False),
        (at(3, 60), at(3, 60), 20, True),  # it passes, and nothing comes nearer
        (at(3, 60), at(3, 46), 2, False),
        (at(3, 60), at(3, 40), 2, True),
        (at(3, 60), at(3, 80), 2, True),
        (at(1, 2), at(1, 0.5), 1, False),
        (at(1, 2), at(1, 3), 2, True),
    ],
)
def test_a_place_is_told_again_when_it_is_not_what_was_to_be_expected(
    before: PlaceAnswer | None, now: PlaceAnswer | None, elapsed_s: float, told: bool
) -> None:
    assert is_news(before, now, elapsed_s=elapsed_s) is told


@pytest.mark.parametrize(("place", "s"), [(None, 15), (at(3), 15), (at(1, 0.1), 2), (at(2, 30), 6), (at(9, 900), 15)])
def test_who_is_served_soon_is_looked_after_more_often(place: PlaceAnswer | None, s: float) -> None:
    assert look_again_s(place) == s


@pytest.mark.parametrize(
    ("finish_s", "retry_after_s"), [(None, None), (600.0, None), (600.5, 1.0), (660.0, 60.0), (1e9, 3600.0)]
)
def test_what_ends_after_its_deadline_is_refused_with_the_time_that_is_missing(
    finish_s: float | None, retry_after_s: float | None
) -> None:
    refusal = too_late(submission(), QuoteAnswer(start_s=1.0, finish_s=finish_s))
    assert (refusal and refusal.retry_after_s) == retry_after_s


def test_a_mere_guess_refuses_nothing() -> None:
    assert too_late(submission(), QuoteAnswer(start_s=1.0, finish_s=1e9, guessed=True)) is None
