"""Several gateways at one account's ledger, with clocks that differ, kills, lost acks and late writes, in a time of its own."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from libs.common.contracts.clients import Limits
from services.gateway.limits.keeper import Keeper
from services.gateway.limits.rolling import COUNTS_MS, LEASES_A_MINUTE
from tests.gateway.limits.worlds import World, no_pauses

no_pauses()


class Requests(RuleBasedStateMachine):
    """Never more than the limit in any minute; and who is refused could not have been let through but for leases."""

    @initialize(limit=st.sampled_from([1, 2, 7, 30, 1200]), gateways=st.integers(1, 4))
    def begin(self, limit: int, gateways: int) -> None:
        self.limit = limit
        self.world = World(Limits(requests_per_minute=limit))
        self.admitted: list[int] = []
        for number in range(gateways):
            self.world.start(before_ms=20 * number, after_ms=15 * number)

    def one_of(self, choice: int) -> Keeper:
        return self.world.keepers[choice % len(self.world.keepers)]

    @rule(choice=st.integers(0, 99), together=st.sampled_from([1, 1, 1, 2, 5, 40, 400]))
    def requests(self, choice: int, together: int) -> None:
        now = self.world.time.ms
        answers = self.world.take(self.one_of(choice), together)
        let_through = answers.count(None)
        self.admitted += [now] * let_through
        for waiting in answers:
            if waiting is None:
                continue
            # A second's worth is put together, a refusal is believed for another.
            recent = sum(at > now - COUNTS_MS - 2100 for at in self.admitted)
            unspent = self.world.started * (self.limit // LEASES_A_MINUTE) + self.lost
            assert recent + unspent >= self.limit, (recent, unspent, self.limit)
            assert now < waiting.until_ms + 1200, "the time to try again is honest"
            assert waiting.until_ms <= now + COUNTS_MS + 100

    lost = 0  # permits of leases that nobody got: their ack was lost, and their holder died before it found out

    @rule(ms=st.sampled_from([0, 1, 50, 250, 999, 1001, 5_000, 30_000, 59_000, 61_000, 62_500]))
    def time_goes_by(self, ms: int) -> None:
        self.world.time.ms += ms

    @rule(what=st.sampled_from(["the ack", "the write"]))
    def the_next_write_goes_wrong(self, what: str) -> None:
        self.world.bucket.lose = what

    @rule()
    def a_late_write_arrives(self) -> None:
        self.world.bucket.deliver_late()

    @precondition(lambda self: len(self.world.keepers) > 1)
    @rule(choice=st.integers(0, 99))
    def a_gateway_is_killed(self, choice: int) -> None:
        self.world.keepers.remove(self.one_of(choice))

    @precondition(lambda self: len(self.world.keepers) < 5)
    @rule(skew=st.integers(0, 100))
    def a_gateway_starts(self, skew: int) -> None:
        self.world.start(before_ms=skew, after_ms=100 - skew)

    @invariant()
    def never_over(self) -> None:
        if not hasattr(self, "world"):
            return
        times = self.admitted
        for index, at in enumerate(times):
            beyond = index + self.limit
            assert beyond >= len(times) or times[beyond] - at >= 60_000, "more than the limit within a minute"

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.close()


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
