"""What the whole path adds, against the same node asked directly: first token, requests/s, tokens/s, CPU per token, jobs/s.

    python -m bench.overhead [--seconds 5] [--json]

One gateway, one worker, one node whose answers cost no time, embedded NATS, all on this machine (DESIGN §6).
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

MODEL = "bench"
SLOTS = 128
PORT = 28700


def prompt(tokens: int) -> str:
    return f"[[tokens={tokens}]]"


class Target:
    """Where requests go: the node itself, or the gateway in front of it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str | None) -> None:
        self._session = session
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def stream(self, tokens: int) -> tuple[float, int, list[float]]:
        """(seconds to the first token, tokens, gaps between reads)."""
        messages = [{"role": "user", "content": prompt(tokens)}]
        path = "/v1/chat/completions" if self._headers else "/api/chat"
        began = time.perf_counter()
        body = {"model": MODEL, "messages": messages, "stream": True}
        async with self._session.post(self._url + path, json=body, headers=self._headers) as response:
            first, count, gaps, last = 0.0, 0, [], began
            mark = b'"content":"' if not self._headers else b'"delta":{'
            async for chunk in response.content.iter_any():
                now = time.perf_counter()
                first = first or now - began
                gaps.append(now - last)
                last = now
                count += chunk.count(mark)
        if response.status != 200:
            raise RuntimeError(f"{response.status}")
        return first, count, gaps[1:]

    async def job(self) -> float:
        began = time.perf_counter()
        body = {"model": MODEL, "prompt": prompt(1)}
        async with self._session.post(f"{self._url}/jobs", json=body, headers=self._headers) as response:
            await response.read()
            if response.status != 202:
                raise RuntimeError(f"{response.status}")
        return time.perf_counter() - began


async def repeated(do: Callable[[], Awaitable[Any]], *, in_flight: int, seconds: float) -> tuple[list[Any], float]:
    """Results of as many calls as fit, `in_flight` at once; and the seconds it took."""
    results: list[Any] = []
    began = time.perf_counter()

    async def one() -> None:
        while time.perf_counter() - began < seconds:
            results.append(await do())

    await asyncio.gather(*(one() for _ in range(in_flight)))
    return results, time.perf_counter() - began


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def cpu_seconds(pids: list[int]) -> float:
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


@contextlib.asynccontextmanager
async def stack(folder: Path) -> AsyncIterator[dict[str, Any]]:
    home = folder / "home"
    environment = os.environ | {"ARRIERO_HOME": str(home)}
    node_port = PORT + 40
    node = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "libs.ollama_sim", "--port", str(node_port), "--models", f"{MODEL}=1GB", "--instant",
         "--slots", str(SLOTS)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    arriero = None
    try:
        await asyncio.sleep(1)
        arriero = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "libs.cli", "up", "--port-base", str(PORT), "--nodes", f"http://127.0.0.1:{node_port}",
             "--slots", str(SLOTS), "--no-demo", "--quiet", "--log-level", "warning"],
            env=environment, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        while not (home / "up.json").exists():
            if arriero.returncode is not None:
                raise RuntimeError("arriero up did not start")
            await asyncio.sleep(0.1)
        found = json.loads((home / "up.json").read_text())
        yield {**found, "node": f"http://127.0.0.1:{node_port}", "node_pid": node.pid}
    finally:
        if arriero and arriero.returncode is None:
            arriero.terminate()
            await asyncio.wait_for(arriero.wait(), 30)
        node.terminate()
        await node.wait()


async def measure(seconds: float) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        async with stack(Path(folder)) as up, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            direct = Target(session, up["node"], None)
            through = Target(session, up["gateway"], up["api_key"])
            await direct.stream(5)
            await through.stream(5)
            found: dict[str, dict[str, float]] = {}
            for name, target in (("direct", direct), ("arriero", through)):
                pids = [up["node_pid"], *(up["pids"].values() if target is through else [])]
                found[name] = await _measure_one(target, pids, seconds)
            times, took = await repeated(through.job, in_flight=1, seconds=seconds)
            found["arriero"]["jobs_1_p50_ms"] = statistics.median(times) * 1000
            times, took = await repeated(through.job, in_flight=64, seconds=seconds)
            found["arriero"]["jobs_64_per_s"] = len(times) / took
            return found


async def _measure_one(target: Target, pids: list[int], seconds: float) -> dict[str, float]:
    firsts = [first for first, _, _ in (await repeated(lambda: target.stream(1), in_flight=1, seconds=seconds))[0]]
    many, took = await repeated(lambda: target.stream(1), in_flight=32, seconds=seconds)
    before = cpu_seconds(pids)
    streams, stream_took = await repeated(lambda: target.stream(200), in_flight=100, seconds=seconds)
    spent = cpu_seconds(pids) - before
    tokens = sum(count for _, count, _ in streams)
    return {
        "first_token_p50_ms": statistics.median(firsts) * 1000,
        "first_token_p99_ms": quantile(firsts, 0.99) * 1000,
        "streams_32_per_s": len(many) / took,
        "tokens_100_per_s": tokens / stream_took,
        "cpu_per_token_us": spent / max(1, tokens) * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each figure is measured")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = asyncio.run(measure(given.seconds))
    if given.json:
        print(json.dumps(found))
        return
    print(f"{'figure':24}{'direct':>12}{'arriero':>12}")
    for figure, value in found["arriero"].items():
        print(f"{figure:24}{found['direct'].get(figure, float('nan')):12.2f}{value:12.2f}")


if __name__ == "__main__":
    main()
