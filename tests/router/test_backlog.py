"""How much work waits, and how often models are asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.backlog import HORIZON_S, backlog, shares
from services.router.demand import Demand
from services.router.fleet import NodeView
from tests.router.building import a_beat


@given(st.dictionaries(st.text(max_size=2), st.floats(0, 100), max_size=6), st.floats(0, 200))
def test_shares_give_what_there_is_and_nobody_more_than_it_asks_for(asked, capacity) -> None:  # type: ignore[no-untyped-def]
    granted = shares(asked, capacity)
    assert sum(granted.values()) == pytest.approx(min(capacity, sum(asked.values())), abs=1e-6)
    most = max(granted.values(), default=0.0)
    for client, share in granted.items():
        assert share <= asked[client]
        assert share == asked[client] or share == pytest.approx(most)


def test_work_is_spread_over_the_slots_that_can_do_it() -> None:
    one, two = (NodeView(name, a_beat(name, slots=slots), heard_at=1.0) for name, slots in (("n1", 1), ("n2", 2)))
    found = backlog(
        {"m:1": {"ann": 6}, "x:1": {"ben": 2}}, {"m:1": 5.0, "x:1": 3.0}, {"m:1": [one, two], "x:1": [one]}, 3
    )
    assert found.queued == {"m:1": 30.0, "x:1": 6.0}
    assert found.levels == {"n1": 16.0, "n2": 10.0}
    assert found.drains_in("m:1", ["n1", "n2"]) == 10.0
    assert found.drains_in("y:1", []) == 0.0


def test_what_a_client_asks_beyond_its_share_moves_nothing() -> None:
    one = NodeView("n1", a_beat(slots=1), heard_at=1.0)
    for clients in ({"flood": 1_000}, {"flood": 1_000, "ann": 1}):
        assert backlog({"m:1": clients}, {"m:1": 5.0}, {"m:1": [one]}, 1).levels["n1"] <= HORIZON_S + 1e-9


def test_demand_is_learned_and_fades() -> None:
    demand = Demand()
    assert demand.per_second("m:1", 5.0) == demand.chance("m:1", 5.0, 100.0) == 0.0
    for n in range(2_000):
        demand.asked("m:1", n / 2)
    assert demand.per_second("m:1", 1_000.0) == pytest.approx(2.0, rel=0.1)
    assert demand.per_second("m:1", 1_300.0) < 0.8
    assert 0 < demand.chance("m:1", 1_300.0, 1.0) < demand.chance("m:1", 1_300.0, 10.0) < 1
    assert list(demand.models()) == ["m:1"]
