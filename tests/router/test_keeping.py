"""How much of a prompt nodes turn out to have kept."""

import pytest

from services.router.keeping import AS_MANY, Keeping


def test_all_is_kept_until_something_else_is_seen() -> None:
    assert [Keeping().share("n1", since) for since in (0, 1, 1_000)] == [1.0, 1.0, 1.0]


def test_what_a_node_has_forgotten_is_learned_for_as_many_prompts_since() -> None:
    keeping = Keeping()
    for _ in range(200):
        keeping.learn("n1", 0, 1.0)
        keeping.learn("n1", 5, 0.0)
    assert keeping.share("n1", 0) == 1.0
    assert keeping.share("n1", 5) == keeping.share("n1", 7) == pytest.approx(0.0, abs=0.01)  # 4 to 7 are one step
    assert keeping.share("n1", 3) == keeping.share("n1", 8) == 1.0


def test_one_figure_is_not_believed_at_once_and_the_newer_count_more() -> None:
    keeping = Keeping()
    keeping.learn("n1", 0, 0.0)
    assert keeping.share("n1", 0) == keeping.share("n2", 0) == pytest.approx(1 - 1 / (AS_MANY + 1))
    for share in (0.0, 1.0):
        for _ in range(100):
            keeping.learn("n1", 0, share)
        assert keeping.share("n1", 0) == pytest.approx(share, abs=0.02)


def test_of_a_node_that_is_not_known_the_fleet_is_the_guess_until_it_shows_itself() -> None:
    keeping = Keeping()
    for _ in range(200):
        keeping.learn("n1", 0, 0.0)
    assert keeping.share("n2", 0) == pytest.approx(0.0, abs=0.01)
    for _ in range(200):
        keeping.learn("n2", 0, 1.0)
    assert keeping.share("n2", 0) == pytest.approx(1.0, abs=0.01)
    assert keeping.share("n1", 0) == pytest.approx(0.0, abs=0.01)


def test_very_many_since_are_alike() -> None:
    keeping = Keeping()
    for _ in range(200):
        keeping.learn("n1", 10**6, 0.0)
    assert keeping.share("n1", 200) == keeping.share("n1", 10**9) < 0.01
    assert keeping.share("n1", 100) == 1.0
