"""What slow clients cost a gateway: headers that trickle, bodies that trickle, readers that take nothing; while others work.

    python -m bench.slow_clients [--heads 2000] [--bodies 500] [--readers 2000] [--json]

One gateway with its default limits, one worker, one instant node, embedded NATS; everything and the load on this machine,
over loopback. It ends by itself after about four minutes.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import re
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from bench.overhead import MODEL, Target, prompt, quantile, stack

TOKENS = 5_000  # of the answer that stalled readers ask for: 0.4 MB as a stream, more than all buffers on the way hold
QUIET_S, ATTACK_S, AFTER_S = 8.0, 30.0, 10.0
READERS_S, READERS_A_SECOND = 75.0, 50
HEAD_EVERY_S, BODY_BYTES_S = 5.0, 100
Endings = collections.Counter[str]


def rss_mib(pid: int) -> float:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


async def figures_of(session: aiohttp.ClientSession, ops: str) -> dict[str, float]:
    """Open connections, and what was turned away, by reason."""
    async with session.get(f"{ops}/metrics") as answer:
        text = await answer.text()
    found = {reason: float(n) for reason, n in re.findall(r'arriero_http_refused_total\{reason="(\w+)"\} (\S+)', text)}
    return found | {"open": max(map(float, re.findall(r"arriero_http_connections\{[^}]*\} (\S+)", text)))}


class Attack:
    def __init__(self, url: str, key: str, job: str) -> None:
        split = urlsplit(url)
        assert split.hostname == "127.0.0.1", "only ever this machine"
        self._address = (split.hostname, split.port or 80)
        self._key = key
        self._job = job
        self.endings: dict[str, Endings] = collections.defaultdict(Endings)
        self.lasted: dict[str, list[float]] = collections.defaultdict(list)

    async def head(self) -> None:
        async with self._lasting("heads"), self._connected() as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            trickling = asyncio.create_task(self._trickle(writer, b"y", HEAD_EVERY_S))
            await self._ended("heads", reader, trickling)

    async def body(self) -> None:
        async with self._lasting("bodies"), self._connected() as (reader, writer):
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._key}\r\n"
            writer.write(f"{head}Content-Length: 1000000\r\n\r\n".encode())
            trickling = asyncio.create_task(self._trickle(writer, b"y" * BODY_BYTES_S, 1.0))
            await self._ended("bodies", reader, trickling)

    async def reader(self) -> None:
        """Asks for a long stream and takes nothing: no task, no buffer of ours reads for it."""
        async with self._lasting("readers"):
            loop = asyncio.get_running_loop()
            reader = socket.socket()
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.setblocking(False)
            with reader:
                await loop.sock_connect(reader, self._address)
                head = f"GET /jobs/{self._job}/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._key}\r\n\r\n"
                await loop.sock_sendall(reader, head.encode())
                while not _is_reset(reader):  # noqa: ASYNC110  # to wait on it would be to read
                    await asyncio.sleep(1)
                self.endings["readers"]["cut"] += 1

    async def _ended(self, kind: str, reader: asyncio.StreamReader, trickling: asyncio.Task[None]) -> None:
        try:
            first = await reader.readline()
            self.endings[kind][first.split(b" ")[1].decode() if first else "closed"] += 1
        except OSError:
            self.endings[kind]["reset"] += 1
        finally:
            trickling.cancel()

    @staticmethod
    async def _trickle(writer: asyncio.StreamWriter, piece: bytes, every: float) -> None:
        with contextlib.suppress(OSError):
            while True:
                await asyncio.sleep(every)
                writer.write(piece)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    @contextlib.asynccontextmanager
    async def _lasting(self, kind: str) -> AsyncIterator[None]:
        began = time.monotonic()
        try:
            yield
        except asyncio.CancelledError:
            self.endings[kind]["still open"] += 1
        except OSError as error:
            self.endings[kind][type(error).__name__] += 1
        finally:
            self.lasted[kind].append(time.monotonic() - began)


def _is_reset(reader: socket.socket) -> bool:
    """Without taking anything: TCP_INFO's first byte is the state, 1 is established."""
    return reader.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 1


async def normal(target: Target, seconds: float) -> dict[str, float]:
    """One request after the other: milliseconds to the first token, and of a submitted job."""
    firsts, jobs, failed = [], [], 0
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        try:
            firsts.append((await target.stream(1))[0] * 1000)
            jobs.append(await target.job() * 1000)
        except (RuntimeError, aiohttp.ClientError):
            failed += 1
        await asyncio.sleep(0.05)
    return {
        "requests": 2 * len(jobs), "failed": failed,
        "first_p50": quantile(firsts, 0.5), "first_p99": quantile(firsts, 0.99),
        "job_p50": quantile(jobs, 0.5), "job_p99": quantile(jobs, 0.99),
    }  # fmt: skip


async def measure(heads: int, bodies: int, readers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        async with stack(Path(folder)) as up, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            target = Target(session, up["gateway"], up["api_key"])
            job = await _long_answer(session, up)
            pid, ops = up["pids"]["gateway"], up["ops"]["gateway"]
            found: dict[str, Any] = {"before": await normal(target, QUIET_S) | {"rss": rss_mib(pid)}}
            attack = Attack(up["gateway"], up["api_key"], job)
            peak = {"rss": 0.0, "open": 0.0}

            async def look() -> None:
                while True:
                    peak["rss"] = max(peak["rss"], rss_mib(pid))
                    peak["open"] = max(peak["open"], (await figures_of(session, ops))["open"])
                    await asyncio.sleep(1)

            looking = asyncio.create_task(look())
            for name, seconds, kinds, rate in [
                ("heads and bodies", ATTACK_S, [attack.head] * heads + [attack.body] * bodies, 1000),
                ("readers", READERS_S, [attack.reader] * readers, READERS_A_SECOND),
                ("readers again", READERS_S, [attack.reader] * readers, READERS_A_SECOND),
            ]:
                peak.update(rss=0.0, open=0.0)
                tasks: list[asyncio.Task[None]] = []
                arriving = asyncio.create_task(_arrive(kinds, rate, tasks))
                found[name] = await normal(target, seconds) | peak
                arriving.cancel()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(arriving, *tasks, return_exceptions=True)
                await asyncio.sleep(3)
                found[f"after {name}"] = await normal(target, AFTER_S) | {"rss": rss_mib(pid)}
            looking.cancel()
            found["turned_away"] = await figures_of(session, ops)
            found["endings"] = {kind: dict(counted) for kind, counted in attack.endings.items()}
            found["lasted_p99_s"] = {kind: quantile(times, 0.99) for kind, times in attack.lasted.items()}
            return found


async def _arrive(
    kinds: list[Callable[[], Coroutine[Any, Any, None]]], rate: float, tasks: list[asyncio.Task[None]]
) -> None:
    """`rate` of them a second."""
    for kind in kinds:
        tasks.append(asyncio.create_task(kind()))
        await asyncio.sleep(1 / rate)


async def _long_answer(session: aiohttp.ClientSession, up: dict[str, Any]) -> str:
    headers = {"Authorization": f"Bearer {up['api_key']}"}
    body = {"model": MODEL, "prompt": prompt(TOKENS)}
    async with session.post(f"{up['gateway']}/jobs", json=body, headers=headers) as answer:
        job: str = (await answer.json())["id"]
    async with session.get(f"{up['gateway']}/jobs/{job}?wait=60", headers=headers) as answer:
        if (await answer.json())["state"] != "succeeded":
            raise RuntimeError("the long answer did not come")
    return job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--heads", type=int, default=2000)
    parser.add_argument("--bodies", type=int, default=500)
    parser.add_argument("--readers", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = asyncio.run(measure(given.heads, given.bodies, given.readers))
    if given.json:
        print(json.dumps(found))
        return
    for name, values in found.items():
        print(name, {key: round(value, 1) if isinstance(value, float) else value for key, value in values.items()})


if __name__ == "__main__":
    main()
