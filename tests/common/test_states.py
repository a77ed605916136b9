"""The life of a job: one table, one function (DESIGN §3, States as clients see them)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.states import FINAL, TRANSITIONS, IllegalTransition, JobEvent, JobState, advance

# Once more, from the DESIGN and not from the code: queued → bound → running → final; requeue goes back to queued.
UNFINISHED = {JobState.QUEUED, JobState.BOUND, JobState.RUNNING}
ENDINGS = {JobEvent.FAIL: JobState.FAILED, JobEvent.CANCEL: JobState.CANCELLED, JobEvent.EXPIRE: JobState.EXPIRED}


@given(st.lists(st.sampled_from(list(JobEvent)), max_size=30))
def test_after_the_first_final_state_nothing_moves_a_job_any_more(events: list[JobEvent]) -> None:
    """Late events are normal, and change nothing."""
    state = JobState.QUEUED
    for event in events:
        try:
            following = advance(state, event)
        except IllegalTransition:
            assert (state, event) not in TRANSITIONS
            assert not state.final
            continue
        if state.final:
            assert following is None
        else:
            assert following is TRANSITIONS[state, event]
            state = following


@pytest.mark.parametrize("state", sorted(FINAL))
@pytest.mark.parametrize("event", list(JobEvent))
def test_a_final_state_is_final(state: JobState, event: JobEvent) -> None:
    assert state.final
    assert advance(state, event) is None


def test_every_state_can_be_reached_and_every_job_can_end() -> None:
    reached = {JobState.QUEUED}
    while more := {to for (of, _), to in TRANSITIONS.items() if of in reached} - reached:
        reached |= more
    assert reached == set(JobState)
    for state in UNFINISHED:
        assert {TRANSITIONS[state, event] for event in ENDINGS} == set(ENDINGS.values())


@pytest.mark.parametrize("state", sorted(UNFINISHED))
@pytest.mark.parametrize("event", list(JobEvent))
def test_the_table_says_what_the_design_says(state: JobState, event: JobEvent) -> None:
    wanted = dict(ENDINGS)
    if state is JobState.QUEUED:
        wanted[JobEvent.BIND] = JobState.BOUND
    else:
        wanted |= {JobEvent.REQUEUE: JobState.QUEUED, JobEvent.SUCCEED: JobState.SUCCEEDED}
    if state is JobState.BOUND:
        wanted[JobEvent.START] = JobState.RUNNING
    if event in wanted:
        assert advance(state, event) is wanted[event]
    else:
        with pytest.raises(IllegalTransition, match=f"{state} has no {event}"):
            advance(state, event)


def test_the_final_states_are_those_that_the_stream_ends_with() -> None:
    assert {str(state) for state in FINAL} == {"succeeded", "failed", "cancelled", "expired"}
    assert set(JobState) - FINAL == UNFINISHED
