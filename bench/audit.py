"""What a record of the audit trail costs: written on its own, or counted with equal ones; and how much a stream of them takes.

    python -m bench.audit [--records 20000] [--json]

One process and one nats-server on this machine. CPU of both is counted (ADR 0011).
"""

import argparse
import asyncio
import json
import resource
import tempfile
import time
from pathlib import Path

from libs.common.audit import Audit
from libs.common.audit.lines import Entry
from libs.common.audit.verify import Verifier
from libs.common.bus.connection import Bus
from libs.common.contracts.streams import AUDIT
from tests.support.nats_server import NatsServer, connected, nats_server

FACTS = {
    "actor": "client-1",
    "credential": "token:8Zk2mA9qLw3xTfQeR5uYvg",
    "address": "192.0.2.7",
    "request_id": "req_0123456789abcdef",
}


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def stored(audit: Audit) -> None:
    while audit._queue:  # noqa: ASYNC110  # a bench, not a service
        await asyncio.sleep(0.001)


async def written(server: NatsServer, bus: Bus, audit: Audit, records: int) -> dict[str, float]:
    assert server._process
    began, own, other = time.perf_counter(), own_cpu(), cpu_of(server._process.pid)
    for n in range(records):
        audit.record("job.submit", "allowed", target=f"job_{n:026}", **FACTS)
        if n % 500 == 499:
            await stored(audit)
    await stored(audit)
    seconds, own, other = time.perf_counter() - began, own_cpu() - own, cpu_of(server._process.pid) - other
    size = (await bus.api(f"STREAM.INFO.{AUDIT}"))["state"]["bytes"] / records
    return {
        "written_per_s": records / seconds,
        "written_cpu_us": own / records * 1e6,
        "written_cpu_us_nats": other / records * 1e6,
        "bytes": size,
    }


def folded(audit: Audit, records: int) -> dict[str, float]:
    own = own_cpu()
    for _ in range(records):
        audit.record("job.submit", "allowed", folded=True, **FACTS)
    return {"folded_cpu_us": (own_cpu() - own) / records * 1e6}


async def verified(bus: Bus) -> dict[str, float]:
    verifier, sequence, count, spent = Verifier({}), 1, 0, 0.0
    while found := await bus.from_sequence(AUDIT, "audit.>", sequence, batch=1000):
        began = time.perf_counter()
        for message in found:
            verifier.add(Entry(message.sequence, message.subject, message.at_ms, message.data))
        spent += time.perf_counter() - began
        count += len(found)
        sequence = found[-1].sequence + 1
    assert verifier.finish().problems == []
    return {"verified_per_s": count / spent}


async def measure(records: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        async with nats_server(Path(folder)) as server, connected(server) as bus:
            audit = Audit(bus, "gateway", "bench", limit=records)
            task = asyncio.create_task(audit.run())
            figures = await written(server, bus, audit, records)
            figures |= folded(audit, records * 5)
            figures |= await verified(bus)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = asyncio.run(measure(given.records))
    if given.json:
        print(json.dumps({name: round(value, 2) for name, value in found.items()}))
        return
    print(
        f"a record of its own    {found['written_cpu_us']:6.0f} µs of CPU, {found['written_cpu_us_nats']:.0f} µs at nats-server"
    )
    print(f"                       {found['written_per_s']:6.0f} a second, {found['bytes']:.0f} bytes in the stream")
    print(f"counted with others    {found['folded_cpu_us']:6.1f} µs of CPU")
    print(f"verified               {found['verified_per_s']:6.0f} a second")


if __name__ == "__main__":
    main()
