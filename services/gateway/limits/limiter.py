"""The limits of clients and keys, right over all gateways together: every answer is one compare-and-set on the account's
ledger in NATS (docs/limits.md). Who has no limits costs nothing here.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import structlog

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.contracts.clients import Account, Principal
from libs.common.contracts.codec import Malformed
from libs.common.contracts.faults import Code, Failed
from libs.common.contracts.jobs import Submission
from libs.common.contracts.requests import Kind
from libs.common.contracts.streams import LIMITS
from libs.common.contracts.subjects import JobKey
from libs.common.journal import Journal
from services.gateway.limits import answers, budgets, ledger, metrics, prompt_bound, reader_slots
from services.gateway.limits.budgets import OUTPUT_TOKENS, Ask, Full, Short
from services.gateway.limits.clock import ServerClock
from services.gateway.limits.keeper import Keeper
from services.gateway.limits.ledger import Ledger
from services.gateway.limits.pace import Pace
from services.gateway.limits.prompt_bound import PromptBound, most_tokens
from services.gateway.limits.reader_slots import Place
from services.gateway.limits.rolling import Instant
from services.gateway.limits.settling import Settling, pause

log = structlog.get_logger()

LOOK_S = 1.0
FORGET_S = 120.0  # an account that nobody used for so long; its ledger stays in NATS


class Limiter:
    """`run` must be running."""

    def __init__(
        self,
        bus: Bus,
        keyed: Callable[[str, str, str], JobKey],
        *,
        output_tokens: int = OUTPUT_TOKENS,
        bytes_per_token: int = 1,
    ) -> None:
        """`keyed`: the job of a client, a route and an Idempotency-Key. `bytes_per_token`: of prompts that wait to be counted;
        with more than 1 they can have more tokens than were reserved for them."""
        self._keyed = keyed
        self._output_tokens = output_tokens
        self._bytes_per_token = bytes_per_token
        self._journal = Journal(bus)
        self._bucket = Bucket(bus, LIMITS)
        self._clock = ServerClock(bus)
        self._settling = Settling(bus)
        self._holder = secrets.token_hex(6)
        self._keepers: dict[str, Keeper] = {}
        self._pace = Pace()

    async def run(self) -> None:
        """Keeps the ledgers in step with what is open here and with what has ended, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._settling.run(), name="limits.settling")
            tasks.create_task(self._say_streams(), name="limits.streams")
            tasks.create_task(self._sweep(), name="limits.sweep")

    # -- requests ------------------------------------------------------------------------------------------------------

    async def admit(self, principal: Principal, *, repeats: tuple[str, str] | None = None) -> None:
        """Counts one request. `repeats`: the route and Idempotency-Key that it comes with: if that job stands already, it is
        given whatever the limits say. Raises Failed: RATE_LIMITED. Raises BusError."""
        try:
            await self._count(principal)
        except Failed as refused:
            if repeats is None or not await self._stands(principal.client, *repeats):
                metrics.refusals.labels("requests").inc()
                raise refused from None

    async def _stands(self, client: str, route: str, key: str) -> bool:
        entry = await self._journal.newest(self._keyed(client, route, key))
        return entry is not None and entry.facts is not None

    async def _count(self, principal: Principal) -> None:
        for account in _narrow_first(principal):
            if account.limits.requests_per_minute:
                waiting = await self._keeper(principal, account).take(account.limits)
                if waiting is not None:
                    now = self._clock.estimate()
                    raise Failed(answers.too_many_requests(account.name, account.limits, waiting, now))

    def headers(self, principal: Principal) -> answers.Headers:
        """How much is left, as this gateway last heard."""
        if not principal.accounts:
            return []
        now, states = self._clock.estimate(), []
        for account in principal.accounts:
            keeper = self._keepers.get(account.name)
            if keeper is not None and keeper.ledger is not None:
                states.append((account.limits, ledger.sums(keeper.ledger, now, account.limits), keeper.left))
        return answers.headers(states, now)

    # -- tokens and waiting jobs ---------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def reserved(
        self, principal: Principal, key: JobKey, job: Submission, bound: Callable[[], PromptBound]
    ) -> AsyncIterator["Reservation"]:
        """Room for a job while it is being stored; whoever finds that it was there before says `unused`. `bound`: called if there
        is a budget. Raises Failed: RATE_LIMITED, QUOTA_EXHAUSTED, QUEUE_FULL. Raises BusError."""
        reservation = Reservation()
        waits = Ask(job.op_id, key.job, 0, 0, 0, job.deadline_s + job.result_ttl_s)
        has_budget = any(budgets.limits_of(account.limits) for account in principal.accounts)
        costs = self._costs(waits, job, bound()) if has_budget else waits
        try:
            for account in _narrow_first(principal):
                if account.limits.queued or budgets.limits_of(account.limits):
                    keeper = self._keeper(principal, account)
                    ask = costs if budgets.limits_of(account.limits) else waits
                    tokens = await self._reserve(keeper, account, key, ask)
                    reservation.keepers.append(keeper)
                    if ask.output is None:
                        reservation.narrow((tokens - ask.prompt) // ask.answers)
            yield reservation
        except Failed as failed:
            # Whether a job was stored that was not acked, the sweep finds out, as for one whose gateway died.
            reservation.is_unused = failed.fault.code is not Code.SUBMIT_UNCONFIRMED
            raise
        finally:
            if reservation.is_unused:
                for keeper in reservation.keepers:
                    with contextlib.suppress(BusError):
                        await self._settling.absent(keeper, job.op_id)

    def _costs(self, waits: Ask, job: Submission, bound: PromptBound) -> Ask:
        prompt, room = most_tokens(job.kind, bound, self._bytes_per_token), job.num_ctx or bound.context
        cap = self._output_tokens if room is None else min(self._output_tokens, max(1, room - job.prompt_tokens))
        output = 0 if job.kind is Kind.EMBED else job.output_tokens or None
        times = prompt_bound.answers(job.kind, bound.request)
        return waits._replace(prompt=prompt, output=output, cap=cap, answers=times)

    async def _reserve(self, keeper: Keeper, account: Account, key: JobKey, ask: Ask) -> int:
        """The tokens reserved. Raises Failed."""

        def reserve(draft: Ledger, now: Instant) -> tuple[int | Short | Full, bool]:
            outcome = budgets.reserve(draft.tokens, account.limits, ask)
            return outcome, isinstance(outcome, int)

        keeper.used(account.limits)
        await self._settling.expect(keeper, key, ask.op_id)
        outcome = await keeper.change(reserve)
        if not isinstance(outcome, int) and await self._settling.sweep(keeper, self._clock.estimate()):
            outcome = await keeper.change(reserve)
        match outcome:
            case Short():
                metrics.refusals.labels(outcome.window).inc()
                raise Failed(answers.too_many_tokens(account.name, outcome, self._clock.estimate()))
            case Full():
                metrics.refusals.labels("jobs").inc()
                raise Failed(answers.too_many_jobs(account.name, outcome))
        return outcome

    # -- streams -------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def stream(self, principal: Principal) -> AsyncIterator[None]:
        """A stream's place, while it is open. Raises Failed: RATE_LIMITED. Raises BusError."""
        opened: list[Keeper] = []
        try:
            for account in _narrow_first(principal):
                if account.limits.open_streams:
                    keeper = self._keeper(principal, account)
                    if await keeper.open_stream(account.limits) is not None:
                        raise _no_place(account)
                    opened.append(keeper)
            yield
        finally:
            for keeper in opened:
                keeper.close_stream()

    async def read(self, principal: Principal, job: str, reader: str, *, wait_s: float) -> bool:
        """Counts a `read` over NATS. The first of a stream is a request, and takes a stream's place; those that follow in time
        keep it. Did it begin one? Raises Failed: RATE_LIMITED. Raises BusError."""
        name, wait_ms, began = reader_slots.name(job, reader), int(wait_s * 1000), False
        for account in _counting_readers(principal):
            if (late_s := self._pace.late_s(f"{account.name}.{name}", time.monotonic())) > 0:
                raise Failed(answers.too_many_reads(late_s))
            match await self._keeper(principal, account).take_reader(account.limits, name, wait_ms):
                case Place.FULL:  # who asks again and again until a place is free has sent no request yet
                    raise _no_place(account)
                case Place.TAKEN:
                    began = True
        if began:
            try:
                await self.admit(principal)
            except Failed:
                await self.leave(principal, job, reader)
                raise
        return began

    async def leave(self, principal: Principal, job: str, reader: str) -> None:
        """That stream is not read any more. Twice is once; what cannot be written now lapses."""
        for account in _counting_readers(principal):
            await _tried(self._keeper(principal, account).drop_reader(reader_slots.name(job, reader)))

    # -- upkeep --------------------------------------------------------------------------------------------------------

    async def _say_streams(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            keepers = list(self._keepers.values())
            await asyncio.gather(*(_tried(keeper.say_streams()) for keeper in keepers))
            metrics.reservations_open.set(sum(len(keeper.ledger.tokens.open) for keeper in keepers if keeper.ledger))
            for keeper in keepers:
                if keeper.is_idle and time.monotonic() - keeper.used_at > FORGET_S:
                    del self._keepers[keeper.account]
                    self._settling.forget(keeper)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(pause())
            await _tried(self._clock.now())
            for keeper in list(self._keepers.values()):
                if keeper.ledger is not None and keeper.ledger.tokens.open:
                    await _tried(self._settling.sweep(keeper, self._clock.estimate()))
            await self._settling.tidy(self._keepers.values())

    def _keeper(self, principal: Principal, account: Account) -> Keeper:
        found = self._keepers.get(account.name)
        if found is None:
            found = Keeper(self._bucket, self._clock, account.name, principal.client, self._holder)
            self._keepers[account.name] = found
        return found


class Reservation:
    """`keepers`: where it stands. Nothing of it is settled here once its job is stored. `answer`: of a request that sets no
    limit of its own, the tokens of its answer that are paid for; None: as many as it likes."""

    def __init__(self) -> None:
        self.answer: int | None = None
        self.keepers: list[Keeper] = []
        self.is_unused = False

    def narrow(self, answer: int) -> None:
        self.answer = answer if self.answer is None else min(self.answer, answer)

    def unused(self) -> None:
        self.is_unused = True


async def _tried(work: Coroutine[Any, Any, object]) -> None:
    """What does not succeed now, the next round does."""
    try:
        await work
    except (BusError, Malformed) as error:
        log.warning("limits.later", error=str(error))


def _no_place(account: Account) -> Failed:
    metrics.refusals.labels("streams").inc()
    return Failed(answers.too_many_streams(account.name, account.limits))


def _counting_readers(principal: Principal) -> list[Account]:
    return [each for each in _narrow_first(principal) if each.limits.open_streams or each.limits.requests_per_minute]


def _narrow_first(principal: Principal) -> list[Account]:
    """A key before its client: what one key is refused for must not cost the others anything."""
    return sorted(principal.accounts, key=lambda account: not account.name.startswith("key."))
