"""The simple rules, each by hand (figures as in playing.py)."""

from tests.router.simulate.playing import first_tokens, fleet, job, node, places, play

TWO = node("n1"), node("n2")


def test_loaded_then_depth_follows_the_model_however_long_the_queue():
    played = play(fleet(*TWO), [job(0), job(10), job(10), job(10)], "loaded-then-depth")

    assert places(played) == "n1 n1 n1 n1"
    assert first_tokens(played) == [5.5, 11, 13, 15]


def test_loaded_then_depth_counts_a_model_that_is_being_loaded():
    assert places(play(fleet(*TWO), [job(0), job(1)], "loaded-then-depth")) == "n1 n1"


def test_loaded_then_depth_takes_the_shortest_queue_where_the_model_is_nowhere():
    jobs = [job(0, "a"), job(1, "b"), job(2, "b"), job(3, "c")]

    assert places(play(fleet(*TWO), jobs, "loaded-then-depth")) == "n1 n2 n2 n1"


def test_a_tie_goes_to_the_node_that_was_given_a_job_longest_ago():
    jobs = [job(0, "a"), job(20, "b"), job(40, "c")]

    assert places(play(fleet(*TWO), jobs, "loaded-then-depth")) == "n1 n2 n1"
    assert places(play(fleet(*TWO), jobs, "least-depth")) == "n1 n2 n1"


def test_loaded_then_depth_never_queues_in_the_router():
    """Bound at the arrival: a node that becomes idle later does not help."""
    jobs = [job(0), job(0), job(0), job(0, "b")]
    played = play(fleet(*TWO), jobs, "loaded-then-depth")

    assert [run.bound_at for run, _ in played.runs] == [0, 0, 0, 0]
    assert first_tokens(played) == [5.5, 7.5, 9.5, 5.5]


def test_least_depth_ignores_what_is_loaded():
    played = play(fleet(*TWO), [job(0), job(1), job(20), job(20)], "least-depth")

    assert places(played) == "n1 n2 n1 n2"
    assert played.loads == 2
    assert first_tokens(played) == [5.5, 6.5, 21, 21]


def test_least_depth_counts_running_and_waiting_jobs_not_free_slots():
    played = play(fleet(node("n1", slots=4), node("n2")), [job(0), job(0), job(0), job(0)], "least-depth")

    assert places(played) == "n1 n2 n1 n2"


def test_a_job_that_ends_at_the_moment_of_an_arrival_does_not_count_any_more():
    played = play(fleet(*TWO), [job(0, output=100), job(0), job(6.5)], "least-depth")

    assert places(played) == "n1 n2 n2"


def test_round_robin_takes_turns_whatever_is_loaded_or_waits():
    assert places(play(fleet(*TWO, node("n3")), [job(t) for t in (0, 0, 9, 9, 50)], "round-robin")) == "n1 n2 n3 n1 n2"


def test_at_random_is_another_way_with_each_seed_and_the_same_with_the_same():
    jobs = [job(t) for t in range(40)]

    assert places(play(fleet(*TWO), jobs, "random", seed=1)) == places(play(fleet(*TWO), jobs, "random", seed=1))
    assert places(play(fleet(*TWO), jobs, "random", seed=1)) != places(play(fleet(*TWO), jobs, "random", seed=2))
    assert set(places(play(fleet(*TWO), jobs, "random")).split()) == {"n1", "n2"}


def test_no_rule_sends_a_model_where_it_does_not_fit():
    mixed = fleet(node("small", vram_gb=5), node("large"), small=4.5, big=9)
    jobs = [job(t, "big") for t in range(8)]

    for policy in ("loaded-then-depth", "least-depth", "round-robin", "random"):
        assert set(places(play(mixed, jobs, policy)).split()) == {"large"}


def test_the_oracle_never_loads_and_has_every_model_everywhere():
    played = play(fleet(node(vram_gb=5), a=4.5, b=4.5, big=9), [job(0, "a"), job(20, "b"), job(40, "big")], "oracle")

    assert first_tokens(played) == [1, 21, 42]
    assert played.loads == 0


def test_the_oracle_has_one_queue_and_gives_to_whoever_is_idle_first():
    jobs = [job(0, output=100), job(0), job(0, "b"), job(0)]
    played = play(fleet(*TWO), jobs, "oracle")

    assert places(played) == "n1 n2 n2 n2"
    assert first_tokens(played) == [1, 1, 3, 5]


def test_the_oracle_takes_the_fastest_idle_slot():
    machines = node("slow", decode_tps=5), node("fast", decode_tps=20), node("middle", decode_tps=10)

    assert places(play(fleet(*machines), [job(0), job(0), job(0), job(100)], "oracle")) == "fast middle slow fast"
