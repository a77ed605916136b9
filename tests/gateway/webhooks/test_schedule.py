"""When to look and when to try again, as functions of time."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.clients import Client
from libs.common.contracts.jobs import Binding, Completion, Submission
from libs.common.contracts.webhooks import EventType, Webhook
from libs.common.folder import Entry
from libs.common.states import FINAL, JobState
from services.gateway.webhooks.registry import failing
from services.gateway.webhooks.schedule import (
    ATTEMPTS_AT,
    GIVE_UP_S,
    LATEST_S,
    MAX_RETRY_AFTER,
    NEVER_CAME_S,
    SOONEST_S,
    Step,
    admit,
    judge,
    next_attempt,
)
from services.gateway.webhooks.under_way import Busy, UnderWay
from tests.gateway.scripted import submission

NOW = 1_800_000_000_000


def entry(facts: Submission | Binding | Completion | None, at_ms: int = NOW) -> Entry:
    return Entry(7, at_ms, facts, b"")


def binding(job: Submission, created_ms: int) -> Binding:
    return Binding(op_id="o", job=job, submitted=1, created_ms=created_ms, epoch=1)


def done(job: Submission) -> Completion:
    return Completion(
        op_id="o", job=job, submitted=1, created_ms=NOW, state=JobState.SUCCEEDED, epoch=1, finished_ms=NOW
    )


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_receiver_that_never_answers_is_asked_eight_times_in_a_day(chance: float) -> None:
    at, attempts = 0.05, [0.05]
    while (delay := next_attempt(at, chance)) is not None:
        at += delay
        attempts.append(at)
    assert len(attempts) == len(ATTEMPTS_AT)
    assert attempts[1] < 7
    assert GIVE_UP_S <= at < GIVE_UP_S * 1.1


@given(st.floats(0, 2 * GIVE_UP_S), st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1e9)))
def test_never_at_once_never_for_ever(elapsed: float, chance: float, retry_after: float | None) -> None:
    delay = next_attempt(elapsed, chance, retry_after)
    assert (delay is None) == (elapsed >= GIVE_UP_S)
    if delay is not None:
        assert delay >= ATTEMPTS_AT[1]
        assert delay >= min(retry_after or 0, MAX_RETRY_AFTER)
        assert elapsed + delay <= GIVE_UP_S * 1.1 + MAX_RETRY_AFTER


def test_what_is_not_there_may_still_come_and_then_not_any_more() -> None:
    for gone in (None, entry(None)):
        assert judge(gone, age=0, now_ms=NOW).step is Step.WAIT
        assert judge(gone, age=NEVER_CAME_S, now_ms=NOW).step is Step.DROP


def test_a_job_without_a_webhook_is_none_of_ours() -> None:
    for facts in (submission(), done(submission())):
        assert judge(entry(facts), age=1, now_ms=NOW).step is Step.DROP
    assert judge(entry(done(submission(webhook="wh"))), age=1e6, now_ms=NOW).step is Step.SEND


@given(st.floats(1, 600_000), st.floats(0, 700_000))
def test_the_next_look_comes_before_the_record_goes(deadline_s: float, lived_s: float) -> None:
    job = submission(webhook="wh", deadline_s=deadline_s, result_ttl_s=60)
    created = NOW - int(lived_s * 1000)
    for facts in (entry(job, created), entry(binding(job, created))):
        verdict = judge(facts, age=lived_s, now_ms=NOW)
        assert verdict.step is Step.WAIT
        assert SOONEST_S <= verdict.delay <= LATEST_S
        if lived_s < deadline_s:
            assert lived_s + verdict.delay * 1.1 < deadline_s + 60


def test_a_webhook_is_disabled_after_five_days_of_failures_only() -> None:
    webhook = Webhook(id="wh_1", url="https://x/", secret="s")
    once = failing(webhook, 1000, "it answered 500")
    assert (once.failing_since, once.disabled_at, once.reason) == (1000, None, "it answered 500")
    later = failing(once, 1000 + 5 * 86400 - 1, "no answer within 10 s")
    assert later == once
    ended = failing(once, 1000 + 5 * 86400, "no answer within 10 s")
    assert (ended.disabled_at, ended.reason) == (
        1000 + 5 * 86400,
        "every delivery of 5 days failed, the last one: no answer within 10 s",
    )
    assert failing(ended, 10**9, "other") == ended
    assert failing(webhook, 5, "it answered 410", gone=True).disabled_at == 5
    assert msgspec.structs.replace(webhook, failing_since=1).disabled_at is None


def test_events_are_the_final_states() -> None:
    assert {event.removeprefix("job.") for event in EventType} == set(FINAL)


def test_one_clients_slow_receiver_leaves_room_for_others() -> None:
    under_way = UnderWay(limit=2)
    with under_way.one("a"), under_way.one("a"):
        for tries in range(1, 4):
            with pytest.raises(Busy) as busy, under_way.one("a"):
                pass
            assert busy.value.after == 1 + tries / 2
        with under_way.one("b"):
            pass
    with under_way.one("a"):
        pass
    assert not under_way._running


@given(st.floats(0, 2 * GIVE_UP_S))
def test_events_wait_for_a_disabled_client_as_long_as_for_a_receiver(elapsed: float) -> None:
    alice = Client(id="alice", name="alice", expires_at=1)
    assert admit(alice, deleted=False, elapsed=elapsed).step is Step.SEND
    for client in (msgspec.structs.replace(alice, disabled=True), None):
        verdict = admit(client, deleted=False, elapsed=elapsed)
        assert verdict.step is (Step.DROP if elapsed >= GIVE_UP_S else Step.WAIT)
        assert SOONEST_S <= verdict.delay <= LATEST_S or verdict.step is Step.DROP
    assert admit(None, deleted=True, elapsed=elapsed).step is Step.DROP
