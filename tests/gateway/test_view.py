"""How a job looks to its owner, whatever stands in its folder."""

import msgspec
import pytest

from libs.common.contracts.control import PlaceAnswer
from libs.common.contracts.events import End, Event, line
from libs.common.contracts.faults import Code, Failed, Fault
from libs.common.contracts.jobs import Attempt, Binding, Candidate, Completion, Decision, Timings, Usage
from libs.common.contracts.nodes import DiskModel
from libs.common.contracts.requests import Priority
from libs.common.folder import Entry, Facts
from libs.common.states import JobState
from services.gateway.view import job_view, row, time_text
from services.gateway.wish import capped, check_model
from tests.gateway.scripted import events, submission

AT = 1_700_000_000_123
FIELDS = {
    "id", "kind", "model", "state", "priority", "node", "epoch", "lineage", "attempts", "position", "eta_s", "created_at",
    "started_at", "finished_at", "result", "usage", "timings", "error",
}  # fmt: skip
ATTEMPT = Attempt(epoch=5, node="b", fault=Fault(code=Code.NODE_FAILED, message="it fell over"), at_ms=AT)
BINDING = Binding(
    op_id="o", job=submission(), submitted=5, created_ms=AT, epoch=6, node="a", boot="x", attempts=(ATTEMPT,)
)
DONE = Completion(
    op_id="o", job=submission(), submitted=5, created_ms=AT, state=JobState.SUCCEEDED, epoch=6, node="a",
    started_ms=AT + 500, finished_ms=AT + 900, usage=Usage(prompt_tokens=3, completion_tokens=4),
    timings=Timings(wait=0.5, total=0.9),
)  # fmt: skip


def entry(facts: Facts) -> Entry:
    return Entry(7, AT, facts, b"")


def test_a_submitted_job_is_queued_and_knows_its_place() -> None:
    place = PlaceAnswer(position=3, start_s=4.25, reason="all slots are taken")
    view = job_view("job_x", entry(submission(metadata={"run": "4"})), place=place)
    assert set(view) == FIELDS | {"metadata"}
    assert (view["state"], view["position"], view["eta_s"], view["attempts"]) == ("queued", 3, 4.25, 0)
    assert view["created_at"] == time_text(AT) == "2023-11-14T22:13:20.123+00:00"
    assert view["metadata"] == {"run": "4"}


@pytest.mark.parametrize(("running", "state"), [(False, "bound"), (True, "running")])
def test_a_bound_job_is_running_once_its_nodes_heartbeat_says_so(running: bool, state: str) -> None:
    view = job_view("job_x", entry(BINDING), running=running)
    assert set(view) == FIELDS | {"failed_attempts"}
    assert (view["state"], view["node"], view["epoch"], view["attempts"]) == (state, "a", 6, 2)
    assert view["created_at"] == time_text(AT)
    assert view["failed_attempts"] == [
        {
            "node": "b", "epoch": 5, "at": time_text(AT),
            "error": {"code": "node_failed", "message": "it fell over", "retryable": True},
        }
    ]  # fmt: skip


DECISION = Decision(
    node="a", reason="soonest", cold=True, waited_ms=1500, ttft_s=4.5, load_s=3.0, cached_tokens=0,
    candidates=(
        Candidate(node="a", verdict="chosen", wait_s=0.0, load_s=3.0, prefill_s=1.5, decode_s=9.0, harm_s=0.0, score_s=4.5),
        Candidate(node="b", verdict="draining"),
    ),
)  # fmt: skip


def test_a_job_is_explained_to_who_asks_for_it() -> None:
    waiting = job_view("job_x", entry(submission()), place=PlaceAnswer(position=1, reason="no slot"), explain=True)
    assert (waiting["decision"], waiting["waiting"]) == (None, "no slot")
    for facts in (BINDING, DONE):
        decided = msgspec.structs.replace(facts, decision=DECISION)
        assert "decision" not in job_view("job_x", entry(decided))
        view = job_view("job_x", entry(decided), explain=True)
        assert view["waiting"] is None
        nothing = dict.fromkeys(("wait_s", "load_s", "prefill_s", "decode_s", "harm_s", "score_s"))
        assert view["decision"] == {
            "node": "a", "reason": "soonest", "cold": True, "waited_s": 1.5, "ttft_s": 4.5, "load_s": 3.0,
            "cached_tokens": 0,
            "candidates": [
                {
                    "node": "a", "verdict": "chosen", "wait_s": 0.0, "load_s": 3.0, "prefill_s": 1.5, "decode_s": 9.0,
                    "harm_s": 0.0, "score_s": 4.5,
                },
                {"node": "b", "verdict": "draining"} | nothing,
            ],
        }  # fmt: skip
        assert job_view("job_x", entry(facts), explain=True)["decision"] is None, "of a router that keeps none"


def test_a_job_given_back_is_queued_again_and_remembers_what_failed() -> None:
    view = job_view("job_x", entry(msgspec.structs.replace(BINDING, node=None, boot=None)))
    assert (view["state"], view["node"], view["attempts"], len(view["failed_attempts"])) == ("queued", None, 1, 1)


def test_a_finished_job_has_its_result_usage_and_times() -> None:
    log = events("Hello ", "world") + line(Event(end=End(state=JobState.SUCCEEDED, final={"done": True})))
    view = job_view("job_x", entry(DONE), log=log)
    assert view["state"] == "succeeded"
    assert view["result"] == {"done": True, "message": {"role": "assistant", "content": "Hello world"}}
    assert view["usage"] == {"prompt_tokens": 3, "completion_tokens": 4}
    assert view["timings"] == {"wait": 0.5, "total": 0.9}
    assert (view["started_at"], view["finished_at"]) == (time_text(AT + 500), time_text(AT + 900))


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED])
def test_a_job_that_came_to_nothing_says_why_and_has_no_result(state: JobState) -> None:
    fault = Fault(code=Code.DEADLINE_EXCEEDED, message="out of time")
    log = events("half") + line(Event(end=End(state=state, fault=fault)))
    view = job_view("job_x", entry(msgspec.structs.replace(DONE, state=state, fault=fault)), log=log)
    assert (view["state"], view["result"], view["error"]["code"]) == (state, None, "deadline_exceeded")


def test_a_row_of_a_listing_is_the_short_form() -> None:
    assert row("job_x", DONE, AT) == {
        "id": "job_x", "kind": "chat", "model": "m:1", "state": "succeeded", "priority": "normal", "node": "a",
        "created_at": time_text(AT), "finished_at": time_text(AT + 900),
    }  # fmt: skip


# -- submission's pure parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", Priority)
@pytest.mark.parametrize("best", Priority)
def test_a_client_gets_what_it_asks_for_or_the_best_that_its_policy_allows(asked: Priority, best: Priority) -> None:
    order = list(Priority)
    assert order.index(capped(asked, best)) == max(order.index(asked), order.index(best))


MODELS = {"llama3.2:3b": DiskModel(name="llama3.2:3b"), "phi:latest": DiskModel(name="phi:latest")}


@pytest.mark.parametrize("name", ["llama3.2:3b", "LLAMA3.2:3b", "phi", "library/phi", "registry.ollama.ai/library/phi"])
def test_a_model_is_known_by_every_name_that_ollama_takes(name: str) -> None:
    check_model(name, MODELS)


@pytest.mark.parametrize("name", ["llama3.2", "phi:7b", "", "x" * 500])
def test_an_unknown_model_is_not_found_and_those_that_exist_are_named(name: str) -> None:
    with pytest.raises(Failed) as caught:
        check_model(name, MODELS)
    fault = caught.value.fault
    assert (fault.code, fault.path) == (Code.MODEL_NOT_FOUND, "model")
    assert fault.details == {"models": ["llama3.2:3b", "phi:latest"]}
    assert "llama3.2:3b, phi:latest" in fault.message


def test_before_any_node_has_joined_nothing_is_known_to_be_missing() -> None:
    with pytest.raises(Failed) as caught:
        check_model("m", {})
    assert caught.value.fault.code is Code.UNAVAILABLE
