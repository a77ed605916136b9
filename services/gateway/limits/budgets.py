"""Tokens of a minute, a day and a month of UTC, and the jobs that hold some of them. Pure.

A job reserves what it may cost when it is submitted, and is settled with what it did cost once it is done. An open
reservation names its job, so everything that settling needs stands in the job's own folder: whoever looks can do it, and
who comes second finds nothing to do.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

import msgspec

from libs.common.contracts.clients import Limits
from libs.common.contracts.jobs import Completion
from services.gateway.limits.rolling import MINUTE_MS, Instant

OUTPUT_TOKENS = 4096  # reserved for a request that sets no limit of its own (security-and-clients.md A2.4)
MAX_OPEN = 8_000  # jobs of one account that hold a reservation: about 600 kB of a message's 1 MiB
# A job whose folder is empty so long after it was reserved for was never stored: a submit gives up within half a minute.
NEVER_STORED_MINUTES = 2
LOG_BYTES_PER_TOKEN = 13  # `{"text":"a"}` and its line end: no token that has a text takes less


class Window(StrEnum):
    MINUTE = "minute"
    DAY = "day"
    MONTH = "month"


class Open(NamedTuple):
    """A reservation. `minute`: the one that it counts in, since the epoch, and with it the day and the month. From the
    minute `gone` on the job's records are no more. `waits`: no node has it yet, as far as anybody noticed."""

    job: str
    tokens: int
    minute: int
    gone: int
    waits: bool


class Uncounted(NamedTuple):
    """What a job cost that was ended from outside: its prompt, which no node counted, and so many tokens `written`."""

    written: int


class Budgets(msgspec.Struct, omit_defaults=True):
    """What is used, open reservations included; of it `…_more` is what jobs cost beyond what was taken for them, because
    their prompts had more tokens than reserved. `open` by the op_id of the job's submission, and `prompts` those of their tokens
    that are for the prompt. Changed in place."""

    now: int = 0  # the latest minute that anybody saw; it never goes back
    minute: int = 0
    day: int = 0
    month: int = 0
    minute_more: int = 0
    day_more: int = 0
    month_more: int = 0
    open: dict[str, Open] = {}
    prompts: dict[str, int] = {}


class Ask(NamedTuple):
    """`output` None: the request sets no limit of its own; then `cap` is reserved, or what is left; `answers` times."""

    op_id: str
    job: str
    prompt: int
    output: int | None
    cap: int
    lives_s: float  # deadline and result TTL
    answers: int = 1


class Short(NamedTuple):
    """Why a job is not taken. `until_ms`: when a window begins that has room for it, if no other job comes; `asked` and `left`
    tokens of this one; `held`: of this one by jobs that are open, which may give some of it back."""

    window: Window
    until_ms: int
    asked: int
    left: int
    limit: int
    held: int = 0


class Full(NamedTuple):
    """So many jobs wait, or are open, as may."""

    limit: int


def roll(budgets: Budgets, now: Instant, limits: Limits) -> None:
    """By what the jobs of a window passed its limit, the next one has less."""
    minute, before = now.earliest // MINUTE_MS, budgets.now
    if minute <= before:
        return
    budgets.now = minute
    owed = _owed(budgets.minute, budgets.minute_more, limits.tokens_per_minute, minute - before)
    budgets.minute = budgets.minute_more = owed
    if days := _day(minute) - _day(before):
        budgets.day = budgets.day_more = _owed(budgets.day, budgets.day_more, limits.tokens_per_day, days)
    if months := _month(minute) - _month(before):
        budgets.month = budgets.month_more = _owed(budgets.month, budgets.month_more, limits.tokens_per_month, months)


def _owed(used: int, more: int, limit: int, windows: int) -> int:
    """So many windows later. A limit that was lowered owes nothing."""
    return max(0, min(more, used - limit) - limit * (windows - 1)) if limit else 0


def reserve(budgets: Budgets, limits: Limits, ask: Ask) -> int | Short | Full:
    """The tokens reserved. Twice is once. `roll` was called."""
    if ask.op_id in budgets.open:
        return budgets.open[ask.op_id].tokens
    waiting = sum(reserved.waits for reserved in budgets.open.values()) if limits.queued else 0
    if limits.queued and waiting >= limits.queued:
        return Full(limits.queued)
    if len(budgets.open) >= MAX_OPEN:
        return Full(MAX_OPEN)
    tokens = ask.prompt + ask.answers * (ask.cap if ask.output is None else ask.output)
    # Whose answer has no known end takes what is left, if it is the only one: a small budget would else admit nothing.
    is_alone = not any(reserved.tokens for reserved in budgets.open.values())
    least = ask.prompt + ask.answers if ask.output is None and ask.cap and is_alone else tokens
    for window, limit in limits_of(limits):
        left = max(0, limit - used(budgets, window))
        if least > left:
            held = max(0, limit - used(budgets, window) + _held(budgets, window)) - left
            return Short(window, _fits_at(budgets, window, least, limit), least, left, limit, held)
        tokens = min(tokens, left)
    budgets.minute += tokens
    budgets.day += tokens
    budgets.month += tokens
    gone = budgets.now + max(1, int(ask.lives_s) // 60)
    budgets.open[ask.op_id] = Open(ask.job, tokens, budgets.now, gone, waits=bool(limits.queued))
    if tokens:
        budgets.prompts[ask.op_id] = ask.prompt
    return tokens


def settle(budgets: Budgets, op_id: str, spent: int | Uncounted | None) -> bool:
    """The job cost so many tokens; None: nobody knows any more, and what was reserved counts, as for a prompt that was not
    counted. False: it was settled before."""
    reserved, prompt = budgets.open.pop(op_id, None), budgets.prompts.pop(op_id, None)
    if reserved is None:
        return False
    if isinstance(spent, Uncounted):
        spent = None if prompt is None else min(reserved.tokens, prompt + spent.written)
    more = 0 if spent is None else spent - reserved.tokens
    if more > 0:  # in the windows of now: those of then may be over
        budgets.minute += more
        budgets.day += more
        budgets.month += more
        budgets.minute_more += more
        budgets.day_more += more
        budgets.month_more += more
        return True
    budgets.minute += more * _same(Window.MINUTE, reserved.minute, budgets.now)
    budgets.day += more * _same(Window.DAY, reserved.minute, budgets.now)
    budgets.month += more * _same(Window.MONTH, reserved.minute, budgets.now)
    return True


def started(budgets: Budgets, op_id: str) -> bool:
    """A node has the job: it does not wait any more. False: that was known."""
    reserved = budgets.open.get(op_id)
    if reserved is None or not reserved.waits:
        return False
    if reserved.tokens:
        budgets.open[op_id] = reserved._replace(waits=False)
    else:
        del budgets.open[op_id]
    return True


def cost(completion: Completion) -> int | Uncounted:
    """What a job that is done used: nothing, if no node ever had it."""
    usage = completion.usage
    if usage is not None and (usage.prompt_tokens or not usage.completion_tokens):
        return usage.prompt_tokens + usage.completion_tokens
    if usage is not None:  # Ollama leaves out what it did not count
        return Uncounted(usage.completion_tokens)
    if completion.started_ms is None and completion.node is None and not (completion.past or completion.attempts):
        return 0
    return Uncounted(completion.log_size // LOG_BYTES_PER_TOKEN)


def limits_of(limits: Limits) -> list[tuple[Window, int]]:
    """The windows that have a limit, the shortest first."""
    found = [
        (Window.MINUTE, limits.tokens_per_minute),
        (Window.DAY, limits.tokens_per_day),
        (Window.MONTH, limits.tokens_per_month),
    ]
    return [(window, limit) for window, limit in found if limit]


def used(budgets: Budgets, window: Window) -> int:
    return {Window.MINUTE: budgets.minute, Window.DAY: budgets.day, Window.MONTH: budgets.month}[window]


def _held(budgets: Budgets, window: Window) -> int:
    return sum(each.tokens for each in budgets.open.values() if _same(window, each.minute, budgets.now))


def _same(window: Window, minute: int, other: int) -> bool:
    match window:
        case Window.MINUTE:
            return minute == other
        case Window.DAY:
            return _day(minute) == _day(other)
    return _month(minute) == _month(other)


def _fits_at(budgets: Budgets, window: Window, tokens: int, limit: int) -> int:
    more = {Window.MINUTE: budgets.minute_more, Window.DAY: budgets.day_more, Window.MONTH: budgets.month_more}[window]
    at_ms = ends_ms(budgets.now, window)
    owed = _owed(used(budgets, window), more, limit, 1)
    while tokens <= limit < tokens + owed:
        at_ms = ends_ms(at_ms // MINUTE_MS, window)
        owed -= limit
    return at_ms


def ends_ms(minute: int, window: Window) -> int:
    """When the window that this minute belongs to is over."""
    match window:
        case Window.MINUTE:
            return (minute + 1) * MINUTE_MS
        case Window.DAY:
            return (_day(minute) + 1) * 1440 * MINUTE_MS
    date = datetime.fromtimestamp(minute * 60, UTC)
    year, month = date.year, date.month
    following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    return int(following.timestamp()) * 1000


def _day(minute: int) -> int:
    return minute // 1440


def _month(minute: int) -> int:
    date = datetime.fromtimestamp(minute * 60, UTC)
    return date.year * 12 + date.month
