"""What the way a run ended means for its job."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.faults import Code
from libs.common.states import JobState
from services.worker.endings import (
    Broke,
    Drop,
    Finish,
    Finished,
    GiveBack,
    Rejected,
    Silent,
    Stopped,
    StopReason,
    classify,
)
from services.worker.patience import Stage
from services.worker.translate import error_text
from tests.worker.recorded import ALL, FAILED

# What each recorded error means; a 500 says nothing by itself (ollama-facts.md §2.2).
OWN_FAULT_500 = {"err-option-type", "err-option-type-temp", "err-format-number", "err-format-word", "err-images-native"}
OWN_FAULT_501 = {"err-embed-on-chat-model"}
NODES_OWN_4XX = {"err-cloud", "err-method-405"}


def expected(name: str) -> str:
    status = ALL[name].reply.status
    if status == 503:
        return "busy"
    if status == 404 or name in NODES_OWN_4XX:
        return "given back"
    if status == 500:
        return "ends" if name in OWN_FAULT_500 else "given back"
    return "ends"


@pytest.mark.parametrize("name", FAILED)
def test_every_recorded_error_ends_the_job_or_goes_back(name: str) -> None:
    """The request's own fault ends it; what another node may do better is given back; busy is not broken."""
    reply = ALL[name].reply
    outcome = classify(Rejected(reply.status, error_text(reply.body)))
    match expected(name):
        case "busy":
            assert isinstance(outcome, GiveBack)
            assert outcome.fault is not None
            assert outcome.fault.code is Code.NODE_BUSY
        case "given back":
            assert isinstance(outcome, GiveBack)
            assert outcome.fault is not None
            assert outcome.fault.code is Code.NODE_FAILED
        case _:
            assert isinstance(outcome, Finish)
            assert outcome.state is JobState.FAILED
            assert outcome.fault is not None
            too_long = "context-exceeded" in name or "too-long" in name
            assert outcome.fault.code is (Code.CONTEXT_LENGTH_EXCEEDED if too_long else Code.NODE_REJECTED)


def test_the_recordings_hold_the_cases_that_matter() -> None:
    assert set(FAILED) >= OWN_FAULT_500 | OWN_FAULT_501 | NODES_OWN_4XX
    assert len([name for name in FAILED if "context-exceeded" in name or "too-long" in name]) >= 4


@given(st.integers(100, 599), st.text())
def test_every_refusal_has_one_outcome(status: int, text: str) -> None:
    """Total over status × text: it ends as failed, or goes back with a fault that says busy or failed."""
    outcome = classify(Rejected(status, text))
    assert not isinstance(outcome, Drop)
    assert outcome.fault is not None
    if isinstance(outcome, Finish):
        assert outcome.state is JobState.FAILED
        assert not outcome.fault.meaning.retryable
    else:
        assert outcome.fault.meaning.retryable


@given(st.text())
def test_a_broken_stream_always_goes_back(text: str) -> None:
    outcome = classify(Broke(text))
    assert isinstance(outcome, GiveBack)
    assert outcome.fault is not None
    assert outcome.fault.code is Code.NODE_FAILED


@pytest.mark.parametrize("stage", list(Stage))
def test_a_silent_node_always_gives_the_job_back_and_says_how_long_it_was_silent(stage: Stage) -> None:
    outcome = classify(Silent(stage, 61.2345))
    assert isinstance(outcome, GiveBack)
    assert outcome.fault is not None
    assert outcome.fault.code is Code.NODE_FAILED
    assert outcome.fault.message.endswith("(61.2 s)")


@pytest.mark.parametrize("status", [401, 403, 405, 408, 302, 502, 504])
def test_what_says_something_of_the_node_goes_back(status: int) -> None:
    """A foreign Host, a cloud that is not signed in, a proxy: the next node may well take the request."""
    assert isinstance(classify(Rejected(status, "")), GiveBack)


@pytest.mark.parametrize(
    "text",
    [
        "llama-server process has terminated: exit status 1: cudaMalloc failed: out of memory",
        "llama-server process no longer running: unknown ",
        "timed out waiting for llama-server to start - progress 0.00",
        "an error was encountered while running the model: unexpected EOF",
        "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error",
    ],
)
def test_a_failed_load_or_engine_goes_back(text: str) -> None:
    assert isinstance(classify(Rejected(500, text)), GiveBack)


def test_an_answer_with_its_terminal_marker_succeeds() -> None:
    assert classify(Finished({"done": True})) == Finish(JobState.SUCCEEDED, final={"done": True})


@pytest.mark.parametrize("reason", list(StopReason))
def test_every_reason_to_stop_has_its_outcome(reason: StopReason) -> None:
    """Drain and cut-off are nobody's fault and no attempt; a fence writes nothing."""
    outcome = classify(Stopped(reason, "why"))
    match reason:
        case StopReason.CANCELLED:
            assert isinstance(outcome, Finish)
            assert outcome.state is JobState.CANCELLED
            assert outcome.fault is not None
            assert outcome.fault.message == "why"
        case StopReason.DEADLINE:
            assert isinstance(outcome, Finish)
            assert outcome.state is JobState.EXPIRED
        case StopReason.TOO_LARGE:
            assert isinstance(outcome, Finish)
            assert outcome.fault is not None
            assert outcome.fault.code is Code.RESULT_TOO_LARGE
        case StopReason.FENCED:
            assert outcome == Drop()
        case StopReason.DRAIN | StopReason.CUT_OFF:
            assert outcome == GiveBack(None)
