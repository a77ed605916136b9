"""What limits cost: the time a gateway's limiter takes for one admission, against a real nats-server on this machine.

    python -m bench.admission [--seconds 3]

Beside it one increment of a counter stream (ADR-49), which is what ADR 0010 decided against.
"""

import argparse
import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from libs.common.bus.connection import Bus
from libs.common.bus.provision import create_missing
from libs.common.contracts.clients import Account, Limits, Principal
from libs.common.contracts.jobs import Submission
from libs.common.contracts.requests import Kind
from libs.common.contracts.subjects import JobKey
from services.gateway.limits import Limiter
from tests.support.nats_server import NatsServer, connected, nats_server

NUMBERS = itertools.count()
Work = Callable[[], Awaitable[None]]


def principal(account: str, **limits: int) -> Principal:
    return Principal(client="acme", scopes=frozenset(), accounts=(Account(name=account, limits=Limits(**limits)),))


def job() -> tuple[JobKey, Submission]:
    number = next(NUMBERS)
    made = Submission(
        op_id=f"{number:016x}", kind=Kind.CHAT, model="m", route="/jobs", deadline_s=3600, result_ttl_s=3600, size=1,
        digest="", prompt_tokens=10, output_tokens=10,
    )  # fmt: skip
    return JobKey("acme", f"job_{number:026x}"), made


def limiter(bus: Bus) -> Limiter:
    return Limiter(bus, lambda client, route, key: JobKey(client, key))


async def measure(name: str, works: list[Work], together: int, seconds: float) -> None:
    """`together` at each of the works at once."""
    times: list[float] = []
    until, cpu = time.monotonic() + seconds, time.process_time()

    async def one(work: Work) -> None:
        while time.monotonic() < until:
            began = time.perf_counter()
            await work()
            times.append(time.perf_counter() - began)

    began = time.monotonic()
    await asyncio.gather(*(one(work) for work in works for _ in range(together)))
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    times.sort()
    p50, p99 = (times[int(len(times) * share)] * 1000 for share in (0.5, 0.99))
    rate = len(times) / took
    print(f"| {name} | {p50:.3f} / {p99:.3f} | {rate:,.0f} | {cpu / len(times) * 1e6:.0f} |")


def requests(made: Limiter, who: Principal) -> Work:
    return lambda: made.admit(who)


def reservations(made: Limiter, who: Principal, *, keep: bool = False) -> Work:
    async def work() -> None:
        key, submission = job()
        async with made.reserved(who, key, submission) as reservation:
            if not keep:
                reservation.unused()

    return work


async def run(nats: NatsServer, seconds: float) -> None:
    async with contextlib.AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(connected(nats)) for _ in range(3)]
        limiters = [limiter(bus) for bus in buses]
        one = limiters[0]
        print("| case | ms, p50 / p99 | each second | CPU, µs (gateways) |\n|---|---:|---:|---:|")
        await measure("no limits", [requests(one, Principal(client="acme", scopes=frozenset()))], 1, seconds / 3)
        who = principal("client.leased", requests_per_minute=10**9)
        await measure("requests a minute, from a lease", [requests(one, who)], 1, seconds)
        # A limit under 480 a minute is leased one by one. Its ledger may not run full while it is measured.
        single = principal("client.single", requests_per_minute=479)
        began = time.perf_counter()
        for _ in range(479):
            await one.admit(single)
        print(
            f"| requests a minute, each from a lease of one | {(time.perf_counter() - began) / 479 * 1000:.3f} (mean) | | |"
        )
        for together in (1, 64):
            who = principal(f"client.t{together}", tokens_per_day=10**12)
            await measure(
                f"tokens: a reservation and its settling, {together} in flight",
                [reservations(one, who)],
                together,
                seconds,
            )
        who = principal("client.three", tokens_per_day=10**12)
        await measure(
            "the same, 3 gateways at one account, 21 in flight at each", [reservations(each, who) for each in limiters],
            21, seconds,
        )  # fmt: skip
        for open_jobs in (1_000, 7_000):
            who = principal(f"client.open{open_jobs}", tokens_per_day=10**12)
            keep = reservations(one, who, keep=True)
            for _ in range(open_jobs // 100):
                await asyncio.gather(*(keep() for _ in range(100)))
            for together in (1, 64):
                name = f"the same beside {open_jobs:,} open reservations, {together} in flight"
                await measure(name, [reservations(one, who)], together, seconds)
        await buses[0].api("STREAM.CREATE.COUNTERS", _counters())

        async def add() -> None:
            await buses[0].append("quota.acme.d20261123", headers={"Nats-Incr": "+20"})

        await measure("for comparison: one increment of a counter stream, 1 in flight", [add], 1, seconds)
        await measure("for comparison: one increment of a counter stream, 64 in flight", [add], 64, seconds)


def _counters() -> dict[str, Any]:
    return {
        "name": "COUNTERS", "subjects": ["quota.>"], "retention": "limits", "storage": "file", "num_replicas": 1,
        "max_msgs_per_subject": 1, "allow_msg_counter": True, "allow_direct": True,
    }  # fmt: skip


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each case")
    with tempfile.TemporaryDirectory() as folder:
        async with nats_server(Path(folder), provision=False) as nats:
            async with connected(nats) as bus:
                await create_missing(bus)
            await run(nats, parser.parse_args().seconds)


if __name__ == "__main__":
    asyncio.run(main())
