"""What a caller is told: refusals as faults, and how much is left, in OpenAI's headers. Pure."""

import math
from typing import NamedTuple

from libs.common.contracts.clients import Limits
from libs.common.contracts.faults import Code, Fault
from services.gateway.limits import budgets, reader_slots, rolling
from services.gateway.limits.budgets import Full, Short, Window
from services.gateway.limits.ledger import Ledger
from services.gateway.limits.pace import READS_PER_S
from services.gateway.limits.rolling import Instant, Wait

SOON_S = 1.0  # a slot of a stream, or in the queue, may be free at any moment
JOBS_END_S = 5.0  # what open jobs hold is free when they end; nobody knows when that is

Headers = list[tuple[bytes, bytes]]


class Left(NamedTuple):
    limit: int
    remaining: int
    reset_s: float


def too_many_requests(account: str, limits: Limits, wait: Wait, now: Instant) -> Fault:
    limit = limits.requests_per_minute
    message = f"{_who(account)} may send {limit} requests a minute, over all gateways together; wait, then try again"
    return Fault(code=Code.RATE_LIMITED, message=message, retry_after_s=_seconds(wait.until_ms, now))


def too_many_streams(account: str, limits: Limits) -> Fault:
    most = limits.open_streams or reader_slots.MAX
    message = f"{_who(account)} may have {most} streams open at once; close one, then try again"
    return Fault(code=Code.RATE_LIMITED, message=message, retry_after_s=SOON_S)


def too_many_reads(late_s: float) -> Fault:
    message = f"a stream may be read {READS_PER_S:g} times a second; wait for what comes, or read with wait_s"
    return Fault(code=Code.RATE_LIMITED, message=message, retry_after_s=late_s)


def too_many_jobs(account: str, full: Full) -> Fault:
    message = f"{_who(account)} may have {full.limit} jobs waiting at once; wait for one of them, then try again"
    return Fault(code=Code.QUEUE_FULL, message=message, retry_after_s=SOON_S)


def too_many_tokens(account: str, short: Short, now: Instant) -> Fault:
    who, window = _who(account), short.window
    if short.asked > short.limit:
        message = (
            f"this request may cost {short.asked} tokens (its longest prompt and answer), and {who} has {short.limit} a"
            f" {window} in all; send a shorter prompt or set a smaller max_tokens or num_predict"
        )
        return Fault(code=Code.QUOTA_EXHAUSTED, message=message, retry_after_s=_seconds(short.until_ms, now))
    message = (
        f"{who} has {short.left} of its {short.limit} tokens left in this {window} (UTC), and this request may cost"
        f" {short.asked} (its longest prompt and answer)"
    )
    wait_s = _seconds(short.until_ms, now)
    if short.asked <= short.left + short.held:
        message += f"; its open jobs hold {short.held}, and give back what they do not use when they end"
        return Fault(code=Code.RATE_LIMITED, message=message, retry_after_s=min(wait_s, JOBS_END_S))
    code = Code.RATE_LIMITED if window is Window.MINUTE else Code.QUOTA_EXHAUSTED
    return Fault(code=code, message=message, retry_after_s=wait_s)


def headers(states: list[tuple[Limits, Ledger, int]], now: Instant) -> Headers:
    """Of each kind the account with the least left. A state: limits, ledger, and permits in hand at this gateway."""
    found: Headers = []
    requests = [left for limits, ledger, in_hand in states if (left := _requests(limits, ledger, in_hand, now))]
    tokens = [left for limits, ledger, _ in states for left in _tokens(limits, ledger, now)]
    for name, lefts in (("requests", requests), ("tokens", tokens)):
        if lefts:
            least = min(lefts, key=lambda left: left.remaining)
            found += [
                (f"x-ratelimit-limit-{name}".encode(), str(least.limit).encode()),
                (f"x-ratelimit-remaining-{name}".encode(), str(least.remaining).encode()),
                (f"x-ratelimit-reset-{name}".encode(), duration(least.reset_s).encode()),
            ]
    return found


def duration(seconds: float) -> str:
    """As OpenAI writes it: "120ms", "1s", "6m0s", "23h59m1s"."""
    if seconds < 1:
        return f"{max(0, math.ceil(seconds * 1000))}ms" if seconds > 0 else "0s"
    whole = math.ceil(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{whole % 60}s"


def _requests(limits: Limits, ledger: Ledger, in_hand: int, now: Instant) -> Left | None:
    limit = limits.requests_per_minute
    if not limit:
        return None
    remaining = max(0, limit - rolling.counted(ledger.requests)) + in_hand
    full_at = rolling.full_at(ledger.requests)
    return Left(limit, remaining, max(0.0, (full_at - now.earliest) / 1000) if full_at else 0.0)


def _tokens(limits: Limits, ledger: Ledger, now: Instant) -> list[Left]:
    found = []
    for window, limit in budgets.limits_of(limits):
        remaining = max(0, limit - budgets.used(ledger.tokens, window))
        until = budgets.ends_ms(ledger.tokens.now, window)
        found.append(Left(limit, remaining, max(0.0, (until - now.earliest) / 1000)))
    return found


def _seconds(until_ms: int, now: Instant) -> float:
    return max(0.001, (until_ms - now.earliest) / 1000)


def _who(account: str) -> str:
    kind, _, name = account.partition(".")
    return f"the API key {name}" if kind == "key" else f"the client {name}"
