"""While a router learns all jobs, Python's cyclic garbage collector stands still; not for longer."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from libs.common.bus.connection import Bus
from services.router import rebuild
from services.router.index import Index
from services.router.intake import Intake
from tests.router.building import Routers, submit
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def _collecting() -> Iterator[None]:
    yield
    gc.enable()
    gc.unfreeze()


async def test_the_collector_rests_until_all_jobs_are_known(
    bus: Bus, routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    collecting: list[bool] = []
    take = Intake.on_record

    def on_record(self: Intake, stored: Any) -> None:
        collecting.append(gc.isenabled())
        take(self, stored)

    monkeypatch.setattr(Intake, "on_record", on_record)
    for _ in range(3):
        await submit(bus)
    async with routers.one(bus) as router:
        await eventually(lambda: len(router.index.jobs) == 3)
        assert collecting[:3] == [False] * 3
        await eventually(gc.isenabled)
        assert gc.get_freeze_count()
        await submit(bus)
        await eventually(lambda: len(router.index.jobs) == 4)
        assert collecting[-1]


async def test_who_never_learns_them_all_collects_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "REST_S", 0.05)
    rebuild.Rebuild(bus, Index(), lambda _: None, lambda: None, 0)._reset()
    assert not gc.isenabled()
    await eventually(gc.isenabled)
