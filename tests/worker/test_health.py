"""Which models of a node are stuck, and when they are looked at again (ollama-facts.md §3.4, §5.6)."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.worker.health import AGAIN_AT_MOST_S, AGAIN_S, DOUBTED, MAX_DOUBTS, Health, Probe
from services.worker.patience import Stage

OPTIONS = {"num_ctx": 8192}


def stuck(model: str = "a", stage: Stage = Stage.ANSWER, loaded: tuple[str, ...] = ("a", "b")) -> Health:
    health = Health()
    health.listed(loaded)
    health.gave_up(model, stage, OPTIONS, 0.0)
    return health


def asked(health: Health, now: float) -> Probe:
    probe = health.due(now)
    assert probe is not None
    return probe


@pytest.mark.parametrize("stage", [Stage.RENDER, Stage.FIRST, Stage.ANSWER])
def test_a_silent_model_closes_the_node_until_it_answers(stage: Stage) -> None:
    health = stuck(stage=stage)
    assert (health.usable, health.suspect_models, health.cold_stuck) == (False, ("a",), False)
    assert "a" in health.problem
    probe = asked(health, 0.0)
    assert probe == Probe("a", OPTIONS)  # with the options that keep Ollama from loading it anew
    health.probed(probe, answered=True, now=1.0)
    assert (health.usable, health.suspect_models, health.problem, health.due(1e9)) == (True, (), "", None)


def test_it_is_looked_at_less_and_less_often_but_always_again() -> None:
    health = stuck(loaded=("a",))
    now, waits = 0.0, []
    for _ in range(8):
        health.probed(asked(health, now), answered=False, now=now)
        wait = 0
        while health.due(now + wait) is None:
            wait += 1
        waits.append(wait)
        now += wait
    assert waits == [AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S, 8 * AGAIN_S, 16 * AGAIN_S, *[AGAIN_AT_MOST_S] * 3]
    health.came_back(now)
    assert asked(health, now).model == "a"


def test_when_another_model_answers_a_run_only_the_silent_one_is_closed() -> None:
    health = stuck()
    run = object()
    health.began(run, "b", 10)
    health.heard(run, was_cold=False)
    assert (health.usable, health.suspect_models) == (True, ("a",))
    health.gave_up("c", Stage.FIRST, {}, 1.0)
    assert not health.usable, "what answered before says nothing of now"
    assert health.suspect_models == ("a", "c")


def test_when_the_silent_model_answers_another_run_the_alarm_was_false() -> None:
    health = stuck()
    run = object()
    health.began(run, "a", 10)
    assert health.due(0.0) is None, "the run that is there will show"
    health.heard(run, was_cold=False)
    assert (health.usable, health.suspect_models) == (True, ())


def test_after_a_probe_without_an_answer_another_model_in_memory_is_asked_once() -> None:
    """A wedged engine is one model's, a wedged card all of them: this tells which."""
    health = stuck(loaded=("a", "b"))
    health.probed(asked(health, 0.0), answered=False, now=0.0)
    other = asked(health, 0.0)
    assert other == Probe("b", {}, bystander=True)
    assert health.due(0.0) is None
    health.probed(other, answered=True, now=1.0)
    assert (health.usable, health.suspect_models) == (True, ("a",))
    assert not health.is_wanted(other)
    health.probed(asked(health, AGAIN_S), answered=False, now=AGAIN_S)
    assert health.due(AGAIN_S) is None, "that others answer is known"


@pytest.mark.parametrize("sign", ["another appears", "it appears", "one comes back", "a probe", "a cold run"])
def test_a_load_that_never_came_closes_the_node_to_cold_work_until_something_is_loaded(sign: str) -> None:
    health = stuck("c", Stage.LOAD)
    assert (health.usable, health.cold_stuck, health.suspect_models) == (True, True, ())
    assert "c" in health.problem
    health.listed(("a", "b"))
    health.listed(("a",))
    run = object()
    health.began(run, "a", 0)
    health.heard(run, was_cold=False)
    health.ended(run)
    assert health.cold_stuck, "what was in memory says nothing of loads"
    match sign:
        case "another appears":
            health.listed(("a", "d"))
        case "it appears":
            health.listed(("a", "c"))
        case "one comes back":
            health.listed(("a", "b"))
        case "a probe":
            health.probed(asked(health, 0.0), answered=True, now=1.0)
        case "a cold run":
            health.began(run, "d", 0)
            health.heard(run, was_cold=True)
    assert (health.cold_stuck, health.problem) == (False, "")


def doubted() -> Health:
    """After three runs that were left, each after a tenth of its patience."""
    health = Health()
    health.listed(("a", "b"))
    for share in (0.1, 0.1):
        health.cut_short("a", Stage.FIRST, {}, share)
        assert health.due(0.0) is None
    health.cut_short("a", Stage.FIRST, OPTIONS, 0.1)
    return health


def test_silences_that_were_cut_short_add_up_to_a_question_and_close_nothing_before_it_failed() -> None:
    health = doubted()
    run = object()
    health.began(run, "a", 10)
    probe = asked(health, 0.0)
    assert probe == Probe("a", OPTIONS), "also beside a run: those never show anything"
    assert health.is_wanted(probe)
    assert (health.usable, health.suspect_models, health.problem) == (True, (), "")
    health.probed(probe, answered=False, now=7.0)
    assert (health.usable, health.suspect_models) == (False, ("a",))
    health.ended(run)
    assert health.due(7.0) == Probe("b", {}, bystander=True)
    assert health.due(7.0 + AGAIN_S) == Probe("a", OPTIONS), "from here on as any that fell silent"
    health.probed(probe, answered=True, now=30.0)
    assert (health.usable, health.suspect_models, health.due(1e9)) == (True, (), None)


@pytest.mark.parametrize("sign", ["the question", "a run", "no silence", "a restart", "given up"])
def test_a_doubt_ends_with(sign: str) -> None:
    health = doubted()
    probe = asked(health, 0.0)
    match sign:
        case "the question":
            health.probed(probe, answered=True, now=1.0)
        case "a run":
            run = object()
            health.began(run, "a", 10)
            health.heard(run, was_cold=False)
            assert not health.is_wanted(probe)
        case "no silence":  # a 503, a broken stream
            health.probed(probe, answered=None, now=1.0)
        case "a restart":
            health.came_back(1.0)
        case "given up":
            health.gave_up("a", Stage.FIRST, OPTIONS, 1.0)
            health.probed(asked(health, 1.0), answered=True, now=1.0)
    health.cut_short("a", Stage.FIRST, {}, DOUBTED - 0.01)
    assert (health.usable, health.suspect_models, health.due(1e9)) == (True, (), None), "it begins anew"


def test_a_load_that_was_waited_for_half_of_its_time_is_asked_for_and_then_closes_cold_work_only() -> None:
    health = Health()
    health.cut_short("a", Stage.LOAD, {}, 0.0)
    assert health.due(1e9) is None
    health.cut_short("a", Stage.LOAD, {}, 1.0)
    health.probed(asked(health, 0.0), answered=False, now=600.0)
    assert (health.usable, health.cold_stuck, health.suspect_models) == (True, True, ())


def test_doubts_are_bounded() -> None:
    health = Health()
    for number in range(3 * MAX_DOUBTS):
        health.cut_short(f"m{number}", Stage.FIRST, {}, 1.0)
    assert len(health._doubts) == MAX_DOUBTS
    assert asked(health, 0.0).model == f"m{2 * MAX_DOUBTS}"


def test_the_reading_of_other_prompts_is_told_until_their_first_token() -> None:
    health = Health()
    one, two = object(), object()
    health.began(one, "a", 500)
    health.began(two, "b", 70)
    assert (health.others(one), health.others(two)) == ([70], [500])
    health.heard(one, was_cold=False)
    assert health.others(two) == [0]
    health.ended(two)
    assert health.others(one) == []


def test_each_change_is_announced_and_nothing_else() -> None:
    changes = []
    health = Health(on_change=lambda: changes.append(1))
    run = object()
    health.began(run, "a", 1)
    health.heard(run, was_cold=True)
    health.listed(("a",))
    assert not changes
    health.gave_up("a", Stage.FIRST, {}, 0.0)
    assert len(changes) == 1
    health.heard(run, was_cold=False)
    health.heard(run, was_cold=False)
    assert len(changes) == 2


class AnyNode(RuleBasedStateMachine):
    """Whatever happens: what is closed is watched, and what answers is open."""

    models = st.sampled_from(["a", "b", "c"])

    def __init__(self) -> None:
        super().__init__()
        self.health, self.now, self.announced = Health(on_change=self.announce), 0.0, (True, (), False)
        self.flights: list[object] = []

    def seen(self):  # type: ignore[no-untyped-def]
        return (self.health.usable, self.health.suspect_models, self.health.cold_stuck)

    def announce(self) -> None:
        self.announced = self.seen()

    @rule(model=models, stage=st.sampled_from(list(Stage)))
    def give_up(self, model, stage) -> None:  # type: ignore[no-untyped-def]
        self.health.gave_up(model, stage, {}, self.now)

    @rule(model=models, stage=st.sampled_from(list(Stage)), share=st.floats(0, 0.5))
    def cut_short(self, model, stage, share) -> None:  # type: ignore[no-untyped-def]
        before = self.seen()
        self.health.cut_short(model, stage, {}, share)
        assert self.seen() == before

    @rule(model=models, was_cold=st.booleans())
    def answer(self, model, was_cold) -> None:  # type: ignore[no-untyped-def]
        run = object()
        self.health.began(run, model, 0)
        self.health.heard(run, was_cold=was_cold)
        self.health.ended(run)
        assert model not in self.health.suspect_models
        assert self.health.usable

    @rule(model=models)
    def begin(self, model) -> None:  # type: ignore[no-untyped-def]
        run = object()
        self.flights.append(run)
        self.health.began(run, model, 10)

    @rule()
    def end(self) -> None:
        if self.flights:
            self.health.ended(self.flights.pop())

    @rule(loaded=st.sets(models))
    def list(self, loaded) -> None:  # type: ignore[no-untyped-def]
        self.health.listed(loaded)

    @rule(answered=st.sampled_from([True, False, None]), later=st.floats(0, 1000))
    def probe(self, answered, later) -> None:  # type: ignore[no-untyped-def]
        self.now += later
        if (probe := self.health.due(self.now)) is not None:
            assert self.health.is_wanted(probe)
            self.health.probed(probe, answered=answered, now=self.now)
            assert not (answered and probe.model in self.health.suspect_models)

    @invariant()
    def what_is_closed_is_watched(self) -> None:
        assert self.announced == self.seen()
        closed = not self.health.usable or self.health.suspect_models or self.health.cold_stuck
        assert bool(self.health.problem) is bool(closed)
        if closed and not self.flights:
            assert self.health.due(self.now + AGAIN_AT_MOST_S) is not None
        if not closed and not any(doubt.share >= DOUBTED for doubt in self.health._doubts.values()):
            assert self.health.due(self.now + AGAIN_AT_MOST_S) is None


AnyNode.TestCase.settings = settings(deadline=None, max_examples=60)
TestAnyNode = AnyNode.TestCase
