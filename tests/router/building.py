"""Builders and the running router of these tests."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from libs.common.bus.connection import Bus
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.jobs import Binding, Completion, PastEpoch, Submission
from libs.common.contracts.nodes import DiskModel, Heartbeat, LoadedModel, Phase, Running
from libs.common.contracts.requests import Kind, Priority
from libs.common.contracts.subjects import JobKey
from libs.common.folder import Entry, ttl_s
from libs.common.journal import Journal
from libs.common.states import JobState
from services.router import main
from services.router.lease import Lease
from services.router.loop import Router
from services.router.settings import RouterSettings
from tests.support.fake_worker import FakeWorker
from tests.support.waiting import eventually

FAULT = Fault(code=Code.NODE_FAILED, message="the node broke")
BUSY = Fault(code=Code.NODE_BUSY, message="server busy")
_ids = itertools.count()


def a_key(job: str = "") -> JobKey:
    return JobKey("acme", job or f"job_{next(_ids)}")


def a_submission(**more: Any) -> Submission:
    facts: dict[str, Any] = {
        "op_id": f"op{next(_ids)}", "kind": Kind.CHAT, "model": "m:1", "route": "/jobs", "priority": Priority.NORMAL,
        "deadline_s": 600.0, "result_ttl_s": 600.0, "size": 2, "digest": "d", "detached": True,
    }  # fmt: skip
    return Submission(**{**facts, **more})


def a_binding(submission: Submission, submitted: int, **more: Any) -> Binding:
    facts: dict[str, Any] = {
        "op_id": f"op{next(_ids)}", "job": submission, "submitted": submitted, "created_ms": 1_000, "epoch": submitted,
        "node": "n1", "boot": "boot-1",
    }  # fmt: skip
    return Binding(**{**facts, **more})


def a_requeue(submission: Submission, submitted: int, **more: Any) -> Binding:
    past = (PastEpoch(epoch=submitted),)
    return a_binding(submission, submitted, **{"node": None, "boot": None, "past": past, **more})


def a_completion(submission: Submission, submitted: int, **more: Any) -> Completion:
    facts: dict[str, Any] = {
        "op_id": f"op{next(_ids)}", "job": submission, "submitted": submitted, "created_ms": 1_000,
        "state": JobState.SUCCEEDED, "epoch": submitted, "finished_ms": 2_000,
    }  # fmt: skip
    return Completion(**{**facts, **more})


def a_beat(node: str = "n1", boot: str = "boot-1", beat: int = 1, changes: int = 0, **more: Any) -> Heartbeat:
    """`running` as (key, epoch) pairs, `models` and `loaded` as names; `sizes` in bytes by name."""
    sizes = more.pop("sizes", {})
    return Heartbeat(
        node=node, boot=boot, beat=beat, changes=changes, slots=more.pop("slots", 1),
        running=tuple(
            Running(client=key.client, job=key.job, epoch=epoch, phase=more.get("phase", Phase.DECODING), model="m:1")
            for key, epoch in more.pop("running", ())
        ),
        models=tuple(DiskModel(name=name, size=sizes.get(name, 0)) for name in more.pop("models", ("m:1",))),
        loaded=tuple(
            LoadedModel(name=name, size=sizes.get(name, 0), size_vram=sizes.get(name, 0))
            for name in more.pop("loaded", ("m:1",))
        ),
        **{name: value for name, value in more.items() if name != "phase"},
    )  # fmt: skip


# -- over a real server ----------------------------------------------------------------------------------------------------


class Leading:
    """Instead of the lease: this router is active whatever the others believe. Safety never depends on the lease."""

    active = True

    def __init__(self, bus: Bus, boot: str, on_change: Callable[[bool], Awaitable[None]]) -> None:
        self._on_change = on_change

    def problem(self) -> None:
        return None

    async def run(self) -> None:
        await self._on_change(True)
        await asyncio.Event().wait()

    async def release(self) -> None:
        pass


class Routers:
    """Starts routers through the service's own `start`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[Router] = []

        def remember(*args: Any, **more: Any) -> Router:
            self.made.append(Router(*args, **more))
            return self.made[-1]

        monkeypatch.setattr(main, "Router", remember)
        monkeypatch.setattr(main, "Lease", Leading)
        self._monkeypatch = monkeypatch

    def with_lease(self) -> None:
        self._monkeypatch.setattr(main, "Lease", Lease)

    @contextlib.asynccontextmanager
    async def one(self, bus: Bus, *, drained: bool = False) -> AsyncIterator[Router]:
        async with main.start(RouterSettings(), bus) as running:
            router = self.made[-1]
            tasks = [asyncio.create_task(coroutine, name=name) for name, coroutine in running.tasks.items()]
            try:
                await eventually(lambda: all(check() is None for check in running.checks.values()))
                yield router
            finally:
                failed = [task for task in tasks if task.done()]
                if drained and running.drain:
                    await running.drain()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                assert not failed, failed


async def heard(router: Router, nodes: int) -> None:
    """All of so many nodes have been heard live: the router gives work to them."""
    await eventually(lambda: sum(view.heard_at > 0 for view in router.fleet.nodes.values()) == nodes)


async def silenced(router: Router, worker: FakeWorker) -> None:
    """From now on nothing is known from heartbeats of it but the last one."""
    await heard(router, 1)
    worker.beating = False


async def submit(bus: Bus, key: JobKey | None = None, **more: Any) -> JobKey:
    """A job, as a gateway stores it."""
    key = key or a_key()
    submission = a_submission(**more)
    ttl = ttl_s(submission, created_ms=0, now_ms=0)
    await Journal(bus).write(key, "new", submission, b'{"model":"m:1"}', expected=0, ttl=ttl)
    return key


async def folder(bus: Bus, key: JobKey) -> Entry:
    newest = await Journal(bus).newest(key)
    assert newest is not None
    return newest


async def ended(bus: Bus, key: JobKey, within: float = 10) -> Completion:
    async def final() -> Completion | None:
        facts = (await folder(bus, key)).facts
        return facts if isinstance(facts, Completion) else None

    found: Completion = await eventually(final, within=within)
    return found


async def binding_of(bus: Bus, key: JobKey) -> Binding | None:
    facts = (await folder(bus, key)).facts
    return facts if isinstance(facts, Binding) else None
