"""What callers are told, by itself."""

import pytest

from libs.common.contracts.clients import Limits
from libs.common.contracts.faults import Code, Fault
from services.gateway.dialects import error_headers
from services.gateway.limits import answers, budgets
from services.gateway.limits.budgets import Ask, Budgets, Full, Short, Window
from services.gateway.limits.ledger import Ledger
from services.gateway.limits.rolling import COUNTS_MS, Instant, Lease, Rolling, Spent, Wait

NOW = Instant(1_795_438_990_061, 1_795_438_990_063)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (1.2, "2s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (86341, "23h59m1s"),
    ],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert answers.duration(seconds) == text


def headers_of(fault: Fault) -> dict[bytes, bytes]:
    return dict(error_headers(fault))


def test_a_minute_s_end_is_worth_waiting_for_a_day_s_is_not() -> None:
    minute = Short(Window.MINUTE, NOW.earliest + 12_345, 100, 50, 250)
    fault = answers.too_many_tokens("client.acme", minute, NOW)
    assert (fault.code, fault.retry_after_s) == (Code.RATE_LIMITED, 12.345)
    assert headers_of(fault) == {b"retry-after": b"13", b"retry-after-ms": b"12345"}
    for window in (Window.DAY, Window.MONTH):
        fault = answers.too_many_tokens("key.k1", minute._replace(window=window), NOW)
        assert fault.code is Code.QUOTA_EXHAUSTED
        assert headers_of(fault)[b"x-should-retry"] == b"false"
        assert "the API key k1 has 50 of its 250 tokens left" in fault.message


def test_who_waits_for_what_its_own_jobs_hold_need_not_wait_for_the_end_of_the_month() -> None:
    short = Short(Window.MONTH, NOW.earliest + 86_400_000, 100, 50, 250, held=50)
    fault = answers.too_many_tokens("client.acme", short, NOW)
    assert (fault.code, fault.retry_after_s) == (Code.RATE_LIMITED, answers.JOBS_END_S)
    assert "its open jobs hold 50" in fault.message
    assert b"x-should-retry" not in headers_of(fault)
    soon = answers.too_many_tokens("client.acme", short._replace(until_ms=NOW.earliest + 1200), NOW)
    assert soon.retry_after_s == 1.2
    too_little = answers.too_many_tokens("client.acme", short._replace(held=49), NOW)
    assert too_little.code is Code.QUOTA_EXHAUSTED


def test_a_request_that_never_fits_is_told_so() -> None:
    fault = answers.too_many_tokens("client.acme", Short(Window.MINUTE, NOW.earliest + 5, 300, 250, 250), NOW)
    assert fault.code is Code.QUOTA_EXHAUSTED
    assert "max_tokens" in fault.message
    assert headers_of(fault)[b"x-should-retry"] == b"false"


def test_waiting_for_more_than_two_minutes_is_left_to_people() -> None:
    for seconds, said in ((119.5, None), (120.5, b"false")):
        fault = Fault(code=Code.RATE_LIMITED, message="", retry_after_s=seconds)
        assert headers_of(fault).get(b"x-should-retry") == said
    assert b"retry-after-ms" not in headers_of(Fault(code=Code.OVERLOADED, message="", retry_after_s=300))
    assert b"x-should-retry" not in headers_of(Fault(code=Code.OVERLOADED, message="", retry_after_s=300))


def test_the_other_refusals() -> None:
    limits = Limits(requests_per_minute=5, open_streams=2)
    fault = answers.too_many_requests("client.acme", limits, Wait(NOW.earliest + 1500), NOW)
    assert (fault.code, fault.retry_after_s) == (Code.RATE_LIMITED, 1.5)
    assert answers.too_many_requests("client.acme", limits, Wait(5), NOW).retry_after_s == 0.001
    assert answers.too_many_streams("client.acme", limits).code is Code.RATE_LIMITED
    assert answers.too_many_jobs("client.acme", Full(7)).code is Code.QUEUE_FULL


def test_headers_tell_of_the_account_with_the_least_left() -> None:
    ledger = Ledger(requests=Rolling(spent=[Spent(NOW.earliest - 1000, 3)], leases={"g": Lease("1", 2, NOW.earliest)}))
    tokens = Budgets()
    budgets.roll(tokens, NOW, Limits())
    budgets.reserve(tokens, Limits(tokens_per_minute=900), Ask("a", "job_a", 10, 90, 0, 60))
    ledger.tokens = tokens
    wide = Limits(requests_per_minute=100, tokens_per_minute=900, tokens_per_day=850)
    narrow = Limits(requests_per_minute=6)
    found = dict(answers.headers([(wide, ledger, 1), (narrow, ledger, 1)], NOW))
    assert found == {
        b"x-ratelimit-limit-requests": b"6",
        b"x-ratelimit-remaining-requests": b"2",
        b"x-ratelimit-reset-requests": answers.duration(COUNTS_MS / 1000).encode(),
        b"x-ratelimit-limit-tokens": b"850",
        b"x-ratelimit-remaining-tokens": b"750",
        b"x-ratelimit-reset-tokens": answers.duration(
            (budgets.ends_ms(tokens.now, Window.DAY) - NOW.earliest) / 1000
        ).encode(),
    }
    spent = Ledger(requests=Rolling(spent=[Spent(NOW.earliest, 999)]))
    found = dict(answers.headers([(narrow, ledger, 1), (Limits(requests_per_minute=1000), spent, 0)], NOW))
    assert found[b"x-ratelimit-limit-requests"] == b"1000", "by what is left, not by what there is"
    assert answers.headers([(Limits(open_streams=3), ledger, 0)], NOW) == []
    rested = dict(answers.headers([(narrow, Ledger(), 0)], NOW))
    assert rested[b"x-ratelimit-reset-requests"] == b"0s"
