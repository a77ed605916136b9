"""How long a router takes from its start until it knows every unfinished job, on a fresh and on a used store.

    python -m bench.rebuild [--jobs 100000] [--finished 20000] [--failed 5000] [--json]

`fresh`: so many queued jobs and nothing else. `used`: a tenth of them queued, after `--finished` others have lived, ended and
been tidied between them: many erased sequences, and cancel marks. `failed`: so many jobs that have failed and whose requests
are kept for a retry; one node waits for work. (DESIGN §6: 100,000 jobs in 3 s.)
"""

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from libs.common.bus.connection import Bus
from libs.common.contracts import subjects
from libs.common.contracts.codec import encode
from libs.common.contracts.headers import FACTS, TTL
from libs.common.contracts.jobs import Binding, CancelMark, Completion, Submission
from libs.common.contracts.requests import Kind
from libs.common.contracts.subjects import JobKey
from libs.common.states import JobState
from services.router import main as router_main
from services.router.loop import Router
from services.router.settings import RouterSettings
from tests.support.fake_worker import fake_worker
from tests.support.nats_server import NatsServer, connected, nats_server

IN_FLIGHT = 256
BODY = b'{"model":"m:1","prompt":"' + b"a prompt " * 40 + b'"}'


def a_submission(n: int) -> Submission:
    return Submission(
        op_id=f"{n:026d}", kind=Kind.CHAT, model="m:1", route="/jobs", deadline_s=3600, result_ttl_s=86_400,
        size=len(BODY), digest="d" * 64, detached=True, affinity=tuple(f"{n + k:016x}" for k in range(4)),
    )  # fmt: skip


class Store:
    """Writes what gateways, routers and workers would have written."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def put(self, subject: str, facts: Any = None, body: bytes = b"", ttl: int = 86_400) -> int:
        headers = {TTL: str(ttl)} | ({FACTS: encode(facts).decode()} if facts is not None else {})
        return (await self._bus.append(subject, body, headers=headers, timeout=30)).sequence

    async def queued(self, n: int) -> tuple[JobKey, int, Submission]:
        key, submission = JobKey("load", f"job_{n:026d}"), a_submission(n)
        return key, await self.put(subjects.record(key, "new"), submission, BODY), submission

    async def finished(self, n: int, state: JobState) -> None:
        """Lived and ended; what of it is emptied has gone by now."""
        key, submitted, submission = await self.queued(n)
        common: dict[str, Any] = {
            "op_id": f"{n:026d}", "job": submission, "submitted": submitted, "created_ms": 1, "epoch": submitted,
            "node": "n1", "boot": "b1",
        }  # fmt: skip
        await self.put(subjects.record(key, "active"), Binding(**common))
        if n % 8 == 0:
            await self.put(subjects.cancel_mark(key), CancelMark(submitted=submitted, reason="not wanted"))
        await self.put(subjects.record(key, "done"), Completion(**common, state=state, finished_ms=2), b'{"end":{}}\n')
        if state is not JobState.FAILED:
            await self.put(subjects.record(key, "new"), ttl=1)
        await self.put(subjects.record(key, "active"), ttl=1)


async def all_of(make: Callable[[int], Awaitable[object]], numbers: Iterable[int]) -> None:
    waiting = iter(numbers)

    async def one() -> None:
        for n in waiting:
            await make(n)

    await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))


async def until(condition: Callable[[], bool]) -> float:
    began = time.perf_counter()
    while not condition():  # noqa: ASYNC110  # nothing tells of it
        await asyncio.sleep(0.002)
    return time.perf_counter() - began


@contextlib.asynccontextmanager
async def a_router(bus: Bus) -> AsyncIterator[tuple[Router, Callable[[], bool]]]:
    """The service's own start; and whether it may act."""
    made: list[Router] = []

    class Watched(Router):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            made.append(self)

    original, router_main.Router = router_main.Router, Watched  # type: ignore[misc]
    try:
        async with router_main.start(RouterSettings(), bus) as running:
            tasks = [asyncio.create_task(task) for task in running.tasks.values()]
            try:
                yield made[0], made[0]._is_active
            finally:
                if running.drain:
                    await running.drain()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        router_main.Router = original  # type: ignore[misc]


async def rebuild(server: NatsServer, queued: int) -> dict[str, float]:
    """Seconds until it may act, and from then on until only the unfinished jobs are left of what it found; its writes."""
    async with connected(server) as bus:
        tried = 0
        original = bus.append

        async def counted(subject: str, *args: Any, **more: Any) -> Any:
            nonlocal tried
            tried += subject.startswith("jobs.")
            return await original(subject, *args, **more)

        bus.append = counted  # type: ignore[method-assign]
        began, cpu_before = time.perf_counter(), time.process_time()
        async with a_router(bus) as (router, active):
            await until(active)
            known, cpu = time.perf_counter() - began, time.process_time() - cpu_before
            found = len(router.index.jobs)
            settled = await until(lambda: len(router.index.jobs) <= queued)
            assert len(router.index.jobs) == queued
            return {"seconds": known, "cpu_s": cpu, "found": found, "settled_s": settled, "writes": tried}


async def fill(store: Store, name: str, jobs: int, finished: int, failed: int) -> int:
    """How many jobs of it are unfinished."""
    if name == "fresh":
        await all_of(store.queued, range(jobs))
        return jobs
    if name == "failed":
        await all_of(lambda n: store.finished(n, JobState.FAILED), range(failed))
        return 0
    every = 1 + finished // (jobs // 10)  # one of so many is still queued

    async def one(n: int) -> None:
        await (store.finished(n, JobState.SUCCEEDED) if n % every else store.queued(n))

    await all_of(one, range(jobs // 10 * every))
    return jobs // 10


async def measure(jobs: int, finished: int, failed: int) -> dict[str, dict[str, float]]:
    results = {}
    for name in ("fresh", "used", "failed"):
        with tempfile.TemporaryDirectory() as folder:
            async with (
                nats_server(Path(folder)) as server,
                connected(server) as bus,
                contextlib.AsyncExitStack() as stack,
            ):
                queued = await fill(Store(bus), name, jobs, finished, failed)
                await asyncio.sleep(2.5)  # what was emptied goes
                state = (await bus.api("STREAM.INFO.JOBS"))["state"]
                if name == "failed":
                    await stack.enter_async_context(fake_worker(bus, models=("m:1",)))
                found = await rebuild(server, queued)
                results[name] = {**found, "messages": state["messages"], "deleted": state.get("num_deleted", 0)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--finished", type=int, default=20_000)
    parser.add_argument("--failed", type=int, default=5_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = asyncio.run(measure(given.jobs, given.finished, given.failed))
    if given.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(f"{name:8}" + "  ".join(f"{figure} {value:,.2f}" for figure, value in figures.items()))


if __name__ == "__main__":
    main()
