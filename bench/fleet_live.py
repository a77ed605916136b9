"""The same jobs through real processes and through `arriero simulate`: does the router do live what it does in virtual time?

    python -m bench.fleet_live [--jobs 300] [--speed 8] [--load 0.85] [--workload steady] [--json]

A fleet of simulated Ollama nodes behind a whole Arriero, against two usual rules in front of the same nodes without it: a client
that binds each job at its arrival, to the node that has the model and the fewest jobs (`loaded-then-depth`), or just the fewest.

The machines are `speed` times faster than described, and jobs come as much faster. Not the nodes' own `--time-scale`:
with that they would report seconds that are longer than the router's. Seconds printed are those of the described fleet.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec

from bench.stack import running_stack
from libs.common.contracts.nodes import canonical_model

PORT = 28900
SLOTS = 1  # more would slow each other within one model on a node, which `arriero simulate` knows nothing of
VRAM_GB = 16  # two of these models fit, with their context, as Ollama reckons
FITS_GB = 14  # the same for the simulator, where a model takes its size
NODES = {"n1": 90, "n2": 90, "n3": 60, "n4": 60, "n5": 40}  # tokens per second of a model of 4.5 GB
PREFILL, LOAD_GBPS = 30, 1.0  # prompt tokens read in the time of one written; GB/s
MODELS = {"alpha:7b": 5.5, "beta:7b": 5.7, "gamma:7b": 5.3, "delta:7b": 5.9, "eps:7b": 5.6, "zeta:7b": 5.4}
MAX_PROMPT, MAX_ANSWER = 2000, 600  # a context of 4096 has room for both
RULES = ("arriero", "loaded-then-depth", "least-depth")
JOB_S = 600.0  # real seconds for one answer


class Job(NamedTuple):
    t: float
    model: str
    prompt: str
    answer_tokens: int


class Node:
    """One simulated Ollama, and what an early-binding client remembers of it."""

    def __init__(self, name: str, url: str, process: asyncio.subprocess.Process) -> None:
        self.name, self.url, self.process = name, url, process
        self.turn = asyncio.Semaphore(SLOTS)
        self.depth, self.given = 0, 0
        self.models: list[str] = []  # of jobs bound here and not ended


def write_files(folder: Path, speed: float, jobs: int, load: float, workload: str, seed: int) -> tuple[Path, Path]:
    """(fleet, trace) for `arriero simulate`: the fast machines, and jobs that come as fast."""
    fleet, trace = folder / "fleet.toml", folder / "trace.jsonl"
    lines = []
    for name, tps in NODES.items():
        lines += ["[[node]]", f'name = "{name}"', f"vram_gb = {FITS_GB}", f"slots = {SLOTS}", f"decode_tps = {tps * speed}",
                  f"prefill_tps = {tps * PREFILL * speed}", f"load_gbps = {LOAD_GBPS * speed}"]  # fmt: skip
    for name, size in MODELS.items():
        lines += ["[[model]]", f'name = "{name}"', f"size_gb = {size}"]
    fleet.write_text("\n".join(lines))
    raw = folder / "raw.jsonl"
    simulate(fleet, "--workload", workload, "--load", str(load), "--jobs", str(jobs), "--seed", str(seed),
             "--policy", "least-depth", "--write-trace", str(raw))  # fmt: skip
    kept = []
    for line in raw.read_text().splitlines():
        job = json.loads(line)
        job["prompt_tokens"] = max(40, min(MAX_PROMPT, job["prompt_tokens"]))
        job["output_tokens"] = max(1, min(MAX_ANSWER, job["output_tokens"]))
        kept.append({key: job[key] for key in ("t", "model", "prompt_tokens", "output_tokens")})
    trace.write_text("\n".join(json.dumps(job) for job in kept))
    return fleet, trace


def simulate(fleet: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "services.router.simulate", "--fleet", str(fleet), "--json", *arguments]
    printed = subprocess.run(command, check=True, capture_output=True).stdout
    policies: dict[str, Any] = json.loads(printed)["policies"]
    return policies


def jobs_of(trace: Path) -> list[Job]:
    jobs = []
    for number, line in enumerate(trace.read_text().splitlines()):
        job = msgspec.json.decode(line)
        begin = f"[[tokens={job['output_tokens']}]] job {number} "  # no two begin alike: nothing of a prompt is cached
        jobs.append(
            Job(job["t"], job["model"], begin + "word " * max(0, job["prompt_tokens"] - 20), job["output_tokens"])
        )
    return jobs


@contextlib.asynccontextmanager
async def nodes_running(speed: float) -> AsyncIterator[list[Node]]:
    models = ",".join(f"{name}={size}GB" for name, size in MODELS.items())
    nodes = []
    try:
        for number, (name, tps) in enumerate(NODES.items()):
            port = PORT + 70 + number
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "libs.ollama_sim", "--port", str(port), "--models", models, "--slots", str(SLOTS),
                  "--vram", f"{VRAM_GB}GB", "--decode-tps", str(tps * speed), "--prefill-tps", str(tps * PREFILL * speed),
                  "--load-gbps", str(LOAD_GBPS * speed), "--load-overhead", "0", "--keep-alive", "-1"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            nodes.append(Node(name, f"http://127.0.0.1:{port}", process))
        async with aiohttp.ClientSession() as session:
            for node in nodes:
                await _answers(session, node.url)
        yield nodes
    finally:
        for node in nodes:
            if node.process.returncode is None:
                node.process.terminate()
            await node.process.wait()


async def _answers(session: aiohttp.ClientSession, url: str) -> None:
    for _ in range(300):
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(url + "/api/version") as response:
                if response.status == 200:
                    return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"{url} does not answer")


async def answer(session: aiohttp.ClientSession, url: str, job: Job, key: str | None) -> float:
    """The moment (monotonic) of its first token; the whole answer is read."""
    messages = [{"role": "user", "content": job.prompt}]
    body = {"model": job.model, "messages": messages, "stream": True}
    mark = b'"content":"' if key is None else b'"delta":{"content"'
    if key is None:
        body["keep_alive"] = -1
    path = "/api/chat" if key is None else "/v1/chat/completions"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    first, read = 0.0, b""
    async with session.post(url + path, json=body, headers=headers) as response:
        async for chunk in response.content.iter_any():
            if not first:
                read += chunk
                if mark in read:
                    first = time.monotonic()
        if response.status != 200 or not first:
            raise RuntimeError(f"{response.status}: {read[:300]!r}")
    return first


async def bound_early(session: aiohttp.ClientSession, nodes: list[Node], rule: str, job: Job, number: int) -> float:
    model = canonical_model(job.model)
    held: dict[str, set[str]] = {}
    if rule == "loaded-then-depth":
        for node in nodes:
            async with session.get(node.url + "/api/ps") as response:
                held[node.name] = {canonical_model(m["name"]) for m in (await response.json())["models"]} | set(
                    node.models
                )
    chosen = min(nodes, key=lambda n: (bool(held) and model not in held[n.name], n.depth, n.given, n.name))
    chosen.depth, chosen.given = chosen.depth + 1, number + 1
    chosen.models.append(model)
    try:
        async with chosen.turn:
            return await answer(session, chosen.url, job, None)
    finally:
        chosen.depth -= 1
        chosen.models.remove(model)


async def run(rule: str, jobs: list[Job], speed: float, folder: Path) -> dict[str, float]:
    waits: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(nodes_running(speed))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=JOB_S), read_bufsize=2**20
            )
        )
        up = await stack.enter_async_context(
            running_stack(
                folder, PORT, "--nodes", ",".join(node.url for node in nodes), "--slots", str(SLOTS),
                ARRIERO_WORKER_VRAM=f"{VRAM_GB}GB",
            )
        ) if rule == "arriero" else None  # fmt: skip
        began = time.monotonic() + 0.5

        async def one(number: int, job: Job) -> None:
            await asyncio.sleep(began + job.t - time.monotonic())
            came = began + job.t
            if up is None:
                first = await bound_early(session, nodes, rule, job, number)
            else:
                first = await answer(session, up["gateway"], job, up["api_key"])
            waits.append((first - came) * speed)

        async with asyncio.TaskGroup() as all_jobs:
            for number, job in enumerate(jobs):
                all_jobs.create_task(one(number, job))
        makespan = (time.monotonic() - began) * speed
        loads = 0
        for node in nodes:
            async with session.get(node.url + "/sim/state") as response:
                loads += (await response.json())["loads"]
    waits.sort()
    return {
        "ttft_p50": waits[len(waits) // 2],
        "ttft_p95": waits[int(len(waits) * 0.95)],
        "makespan": makespan,
        "loads_per_1000": loads * 1000 / len(jobs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--speed", type=float, default=8.0, help="how many times faster than described all goes")
    parser.add_argument("--load", type=float, default=0.85)
    parser.add_argument("--workload", default="steady")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policy", default=",".join(RULES))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fleet, trace = write_files(folder, given.speed, given.jobs, given.load, given.workload, given.seed)
        chosen = given.policy.split(",")
        predicted = simulate(fleet, "--trace", str(trace), "--policy", ",".join(chosen))
        for rule in chosen:
            live = asyncio.run(run(rule, jobs_of(trace), given.speed, folder))
            scaled = {key: predicted[rule][key] * given.speed for key in ("ttft_p50", "ttft_p95", "makespan")}
            found[rule] = {"live": live, "simulated": {**scaled, "loads_per_1000": predicted[rule]["loads_per_1000"]}}
    if given.json:
        print(json.dumps(found))
        return
    print(f"{'seconds':30}{'TTFT p50':>10}{'p95':>10}{'makespan':>10}{'loads/1000':>12}")
    for rule, both in found.items():
        for kind, figures in both.items():
            shown = [figures[key] for key in ("ttft_p50", "ttft_p95", "makespan", "loads_per_1000")]
            print(f"{rule + ', ' + kind:30}{shown[0]:10.2f}{shown[1]:10.1f}{shown[2]:10.0f}{shown[3]:12.0f}")


if __name__ == "__main__":
    main()
