"""Gateways that reserve, store, die and settle, with jobs that end or were never stored: nothing is over, nothing leaks."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from libs.common.contracts.clients import Limits
from libs.common.contracts.jobs import Submission
from services.gateway.limits import budgets, reader_slots, settling
from services.gateway.limits.budgets import Ask
from services.gateway.limits.keeper import Keeper
from services.gateway.limits.ledger import read
from services.gateway.limits.reader_slots import Place
from services.gateway.limits.rolling import Instant
from services.gateway.limits.settling import Settling
from tests.gateway.limits.folders import Folders
from tests.gateway.limits.worlds import World, no_pauses

no_pauses()
settling.AT_MOST_EVERY_S = 0.0

LIMIT, QUEUED, STREAMS = 1000, 4, 3


class Job:
    def __init__(self, op: str, tokens: int, day: int) -> None:
        self.op = op
        self.name = f"job_{op}"
        self.reserved = tokens
        self.day = day
        self.facts: Submission | None = None  # once it is stored
        self.bound = False
        self.cost: int | None = None  # once it is done
        self.lost = False  # its gateway died before it was stored


class Gateway:
    def __init__(self, keeper: Keeper, looks: Settling) -> None:
        self.keeper = keeper
        self.settling = looks
        self.streams = 0


class Budgets(RuleBasedStateMachine):
    @initialize(gateways=st.integers(1, 3))
    def begin(self, gateways: int) -> None:
        self.world = World(Limits(tokens_per_day=LIMIT, queued=QUEUED, open_streams=STREAMS))
        self.folders = Folders()
        self.gateways: list[Gateway] = []
        self.jobs: list[Job] = []
        self.excess = 0
        self.readers: dict[str, int] = {}  # over NATS: until when each one surely counts
        self.dead_streams: list[tuple[int, int]] = []  # (streams, killed at)
        for _ in range(gateways):
            self.a_gateway_starts()

    @rule()
    @precondition(lambda self: len(self.gateways) < 4)
    def a_gateway_starts(self) -> None:
        keeper = self.world.start(10, 10)
        self.gateways.append(Gateway(keeper, Settling(self.folders)))  # type: ignore[arg-type]

    @precondition(lambda self: len(self.gateways) > 1)
    @rule(choice=st.integers(0, 99))
    def a_gateway_is_killed(self, choice: int) -> None:
        gone = self.gateways.pop(choice % len(self.gateways))
        self.dead_streams.append((gone.streams, self.world.time.ms))

    def one_of(self, choice: int) -> Gateway:
        return self.gateways[choice % len(self.gateways)]

    @property
    def day(self) -> int:
        return self.world.time.ms // 86_400_000

    # -- jobs ----------------------------------------------------------------------------------------------------------

    @rule(
        choice=st.integers(0, 99),
        tokens=st.integers(1, 400),
        dies=st.booleans(),
        lose=st.sampled_from(["", "", "the ack"]),
    )
    def reserve(self, choice: int, tokens: int, dies: bool, lose: str) -> None:
        gateway = self.one_of(choice)
        ask = Ask(f"op{len(self.jobs)}", f"job_op{len(self.jobs)}", 0, tokens, 0, 7 * 86_400)
        self.world.bucket.lose = lose

        def change(draft: Any, now: Instant) -> tuple[Any, bool]:
            outcome = budgets.reserve(draft.tokens, self.world.limits, ask)
            return outcome, isinstance(outcome, int)

        got = self.world.do(gateway.keeper.change(change))
        self.world.bucket.lose = ""
        if not isinstance(got, int):
            return
        assert got == tokens
        job = Job(ask.op_id, tokens, self.day)
        job.lost = dies
        self.jobs.append(job)
        if dies and len(self.gateways) > 1:
            self.a_gateway_is_killed(choice)
        elif not dies:
            job.facts = self.folders.submit(job.name, job.op)

    def some_job(self, choice: int) -> Job | None:
        alive = [job for job in self.jobs if job.facts and job.cost is None]
        return alive[choice % len(alive)] if alive else None

    @rule(choice=st.integers(0, 99))
    def a_node_takes_it(self, choice: int) -> None:
        if (job := self.some_job(choice)) is not None:
            assert job.facts
            self.folders.bind(job.name, job.facts)
            job.bound = True

    @rule(choice=st.integers(0, 99), tokens=st.integers(0, 500))
    def it_ends(self, choice: int, tokens: int) -> None:
        if (job := self.some_job(choice)) is not None:
            assert job.facts
            self.folders.finish(job.name, job.facts, tokens)
            job.cost = tokens
            self.excess += max(0, tokens - job.reserved)

    @rule(choice=st.integers(0, 99), lose=st.sampled_from(["", "the ack"]))
    def somebody_sweeps(self, choice: int, lose: str) -> None:
        gateway = self.one_of(choice)
        self.world.bucket.lose = lose
        now = Instant(self.world.time.ms - 10, self.world.time.ms + 10)
        self.world.do(gateway.settling.sweep(gateway.keeper, now))
        self.world.bucket.lose = ""

    @rule(ms=st.sampled_from([10, 999, 11_000, 31_000, 130_000, 5 * 3_600_000]))
    def time_goes_by(self, ms: int) -> None:
        """Gateways that live say what they have open in time."""
        for _ in range(max(1, min(ms, 60_000) // 10_000)):
            self.world.time.ms += ms // max(1, min(ms, 60_000) // 10_000)
            for gateway in self.gateways:
                self.world.do(gateway.keeper.say_streams())

    # -- streams -------------------------------------------------------------------------------------------------------

    @rule(choice=st.integers(0, 99), lose=st.sampled_from(["", "", "the ack"]))
    def a_stream_is_opened(self, choice: int, lose: str) -> None:
        gateway = self.one_of(choice)
        self.world.bucket.lose = lose
        refused = self.world.do(gateway.keeper.open_stream(self.world.limits))
        self.world.bucket.lose = ""
        gateway.streams += refused is None

    @rule(choice=st.integers(0, 99), reader=st.sampled_from("abcd"), lose=st.sampled_from(["", "", "the ack"]))
    def a_read_comes_over_nats(self, choice: int, reader: str, lose: str) -> None:
        """It goes to any gateway, as the one before it."""
        keeper = self.one_of(choice).keeper
        is_open = self.readers.get(reader, 0) > self.world.time.ms
        self.world.bucket.lose = lose
        place = self.world.do(keeper.take_reader(self.world.limits, reader, 1000))
        assert place is Place.KEPT or not is_open
        assert place is not Place.KEPT or lose or reader in self.readers
        if place is not Place.FULL:
            self.readers[reader] = self.world.time.ms + 1000 + reader_slots.HOLDS_MS - reader_slots.WORTH_MS
        self.world.bucket.lose = ""

    @rule(choice=st.integers(0, 99), reader=st.sampled_from("abcd"))
    def a_reader_leaves(self, choice: int, reader: str) -> None:
        self.world.do(self.one_of(choice).keeper.drop_reader(reader))
        self.readers.pop(reader, None)

    @rule(choice=st.integers(0, 99))
    def a_stream_is_closed(self, choice: int) -> None:
        gateway = self.one_of(choice)
        if gateway.streams:
            gateway.streams -= 1
            gateway.keeper.close_stream()

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def never_over(self) -> None:
        if not hasattr(self, "world"):
            return
        today = [job for job in self.jobs if job.day == self.day]
        used = sum(job.cost if job.cost is not None else job.reserved for job in today if not job.lost)
        assert used <= LIMIT + self.excess
        waiting = sum(job.facts is not None and not job.bound and job.cost is None for job in self.jobs)
        assert waiting <= QUEUED
        reading = sum(until > self.world.time.ms for until in self.readers.values())
        assert sum(gateway.streams for gateway in self.gateways) + reading <= STREAMS

    @invariant()
    def the_ledger_counts_at_least_what_is_true(self) -> None:
        if not hasattr(self, "world") or self.world.bucket.value is None:
            return
        found = read(self.world.bucket.value).tokens
        if found.now // 1440 == self.day:
            today = [job for job in self.jobs if job.day == self.day]
            true = sum(job.reserved if job.op in found.open else min(job.cost or 0, job.reserved) for job in today)
            assert true <= found.day <= true + self.excess

    def teardown(self) -> None:
        """Once all has ended and somebody looked, the sums are those of the jobs, and every slot is free."""
        if not hasattr(self, "world"):
            return
        for job in self.jobs:
            if job.facts and job.cost is None:
                self.folders.finish(job.name, job.facts, 7)
                job.cost = 7
                self.excess += max(0, 7 - job.reserved)
        for gateway in self.gateways:
            while gateway.streams:
                gateway.streams -= 1
                gateway.keeper.close_stream()
        day = self.day
        self.time_goes_by(181_000)
        self.world.time.ms += 0
        self.somebody_sweeps(0, "")
        self.a_stream_is_opened(0, "")
        found = read(self.world.bucket.value)
        assert found.tokens.open == {}
        if found.tokens.now // 1440 == day == self.day:
            true = sum(min(job.cost or 0, job.reserved) for job in self.jobs if job.day == day)
            assert true <= found.tokens.day <= true + self.excess
        assert sum(held.streams for held in found.streams.values()) == 1
        assert not found.readers
        self.world.close()


TestBudgets = Budgets.TestCase
TestBudgets.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
