"""What a gateway knows of the fleet, folded from heartbeats."""

import asyncio
from typing import Any

import pytest

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, Failed
from libs.common.contracts.nodes import DiskModel, Heartbeat
from libs.common.contracts.streams import NODES
from services.gateway.fleet import YOUNG_BEATS, FleetView
from services.gateway.wish import check_model
from tests.support.waiting import eventually


async def beat(bus: Bus, **more: Any) -> None:
    said = {"node": "n", "boot": "b1", "beat": 1, "changes": 0, "slots": 1} | more
    await Bucket(bus, NODES).put("n", encode(Heartbeat(**said)))


async def test_a_worker_that_has_just_started_does_not_make_its_models_unknown(bus: Bus) -> None:
    """Found by a fault run: all workers of a model restarted at once, and its clients got a 404 that is not retried."""
    view = FleetView(bus)
    following = asyncio.create_task(view.follower.run())
    await beat(bus, models=(DiskModel(name="m:1"),))
    await eventually(lambda: "m:1" in view.models())
    await beat(bus, boot="b2", reachable=False, problem="not asked yet")
    await eventually(lambda: view.nodes()[0]["boot"] == "b2")
    assert "m:1" in view.models()
    await beat(bus, boot="b2", beat=2, models=(DiskModel(name="other:1"),))
    await eventually(lambda: "other:1" in view.models())
    assert "m:1" not in view.models(), "once it knows, its word counts"
    following.cancel()


async def test_an_unknown_model_is_no_404_while_a_new_node_has_not_said_what_it_has(bus: Bus) -> None:
    view = FleetView(bus)
    following = asyncio.create_task(view.follower.run())
    await beat(bus, reachable=False, problem="not asked yet")
    await eventually(lambda: view.nodes())
    with pytest.raises(Failed) as error:
        check_model("m:1", view.models(), is_complete=view.is_complete)
    assert error.value.fault.code is Code.UNAVAILABLE
    await beat(bus, beat=YOUNG_BEATS + 1, reachable=False, problem="refused")
    await eventually(lambda: view.is_complete)
    following.cancel()
