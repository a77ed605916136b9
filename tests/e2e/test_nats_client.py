"""An internal service with nothing but its NATS user, while workers, gateways and NATS itself are killed under its answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.client import Arriero, Job, JobCancelled, Text
from libs.client.stream import Stream
from tests.support.sim_process import SimProcess
from tests.support.stack import Stack, running_stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

MODEL = "native:1"
SIM = (
    "--models", "native:1=1GB:tools:native", "--seed", "7", "--slots", "4", "--disk-gbps", "100", "--decode-tps", "20",
)  # fmt: skip
LONG = 200  # tokens: ten seconds


@pytest.fixture(scope="module")
def sims() -> Iterator[list[SimProcess]]:
    found = [SimProcess(*SIM), SimProcess(*SIM)]
    yield found
    for sim in found:
        sim.kill()


@pytest.fixture(scope="module")
def stack(sims: list[SimProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two nodes that hold the same model, two gateways. What is killed is started again."""
    arguments = ["--no-demo", "--gateways", "2", "--slots", "4", "--nodes", ",".join(sim.url for sim in sims)]
    with running_stack(tmp_path_factory.mktemp("nats_client"), *arguments) as running:
        yield running


@pytest.fixture
async def arriero(stack: Stack) -> AsyncIterator[Arriero]:
    async with connected(stack) as made:
        yield made


def connected(stack: Stack) -> contextlib.AbstractAsyncContextManager[Arriero]:
    """As the demo client, whose NATS user may do what every client's may."""
    (file,) = stack.home.glob("nats-*.env")
    login = dict(line.split("=", 1) for line in file.read_text().splitlines())
    more: dict[str, Any] = {"password": login["NATS_PASSWORD"]} if "NATS_PASSWORD" in login else {}
    if "NATS_NKEY" in login:
        more = {"nkey_seed": Path(login["NATS_NKEY"]).read_text().strip()}
    return Arriero.connect(login["NATS_URL"], client=login["NATS_USER"], patience=120, **more)


async def submit(arriero: Arriero, tokens: int = LONG, about: str = "llamas") -> Job:
    messages = [{"role": "user", "content": f"Tell me about {about}. [[tokens={tokens}]]"}]
    return await arriero.submit(model=MODEL, messages=messages, timeout=60)


UNCUT: dict[int, str] = {}


async def uncut(arriero: Arriero, tokens: int) -> str:
    """What the answer is when nothing happens to it; the same at both nodes."""
    if tokens not in UNCUT:
        UNCUT[tokens] = (await (await submit(arriero, tokens)).result(timeout=120)).text
    return UNCUT[tokens]


class Reader:
    """Collects a stream; its error is raised by `whole`."""

    def __init__(self, job: Job) -> None:
        self.texts: list[str] = []
        self.kinds: set[type] = set()
        self._task = asyncio.create_task(self._read(job))

    async def _read(self, job: Job) -> None:
        async for event in job.stream():
            self.kinds.add(type(event))
            if isinstance(event, Text):
                self.texts.append(event.text)

    async def has(self, tokens: int) -> None:
        await eventually(lambda: len(self.texts) >= tokens or self._task.done(), within=60)
        assert not self._task.done(), (len(self.texts), self._task)

    async def whole(self) -> str:
        async with asyncio.timeout(120):
            await self._task
        assert self.kinds == {Text}
        return "".join(self.texts)


async def test_an_answer_is_streamed_taken_joined_late_and_read_again(stack: Stack, arriero: Arriero) -> None:
    job = await submit(arriero, 40)
    async with connected(stack) as other:
        first, second = Reader(job), None
        await first.has(5)
        second = Reader(other.job(job.id))
        text = await first.whole()
        assert await second.whole() == text
        assert await Reader(other.job(job.id)).whole() == text
        result = await other.job(job.id).result(timeout=60)
    assert len(first.texts) > 30
    assert result.text == text
    assert result.usage is not None
    assert result.usage["completion_tokens"] == 41
    assert job.id in [row["id"] async for row in arriero.list(state="succeeded")]


async def test_a_running_answer_is_cancelled(arriero: Arriero) -> None:
    job = await submit(arriero)
    reader = Reader(job)
    await reader.has(5)
    await job.cancel()
    with pytest.raises(JobCancelled):
        await reader.whole()
    with pytest.raises(JobCancelled):
        await job.result(timeout=60)


@contextlib.contextmanager
def held(sims: list[SimProcess], tokens: int) -> Iterator[None]:
    """No answer ends meanwhile; those that begin after it do."""
    for sim in sims:
        sim.hold(tokens)
    yield
    for sim in sims:
        sim.hold_no_more()


async def test_a_worker_is_killed_in_mid_answer(stack: Stack, sims: list[SimProcess], arriero: Arriero) -> None:
    """What came since the last segment, this service and the gateway that watched along have seen: nothing is lost of it."""
    whole = await uncut(arriero, LONG)
    with held(sims, LONG - 50):
        job = await submit(arriero)
        reader = Reader(job)
        await reader.has(50)
        node = (await job.status())["node"]
    old = stack.kill(f"worker-{node}")
    assert await reader.whole() == whole
    result = await job.result(timeout=60)
    assert result.text == whole
    assert (await job.status())["attempts"] == 2
    stack.wait_for_new_pid(f"worker-{node}", old)


async def test_all_gateways_are_killed_and_then_the_worker(
    stack: Stack, sims: list[SimProcess], arriero: Arriero, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = await uncut(arriero, 2 * LONG)
    watches: list[float] = []
    read, now = Stream._read, asyncio.get_running_loop().time

    async def noted(stream: Stream, position: Any, **more: Any) -> Any:
        if more:
            watches.append(now())
        return await read(stream, position, **more)

    monkeypatch.setattr(Stream, "_read", noted)
    with held(sims, 2 * LONG - 50):
        job = await submit(arriero, 2 * LONG)
        reader = Reader(job)
        await reader.has(20)
        pids = {name: stack.kill(name) for name in ("gateway", "gateway-2")}
        before = len(reader.texts)
        await reader.has(before + 20)
        for name, old in pids.items():
            await asyncio.to_thread(stack.wait_for_new_pid, name, old)
        back = now()
        await eventually(lambda: watches[-1] > back, within=60)  # one of the new ones watches along
        node = (await job.status())["node"]
    old = stack.kill(f"worker-{node}")
    assert await reader.whole() == whole
    assert (await job.status())["attempts"] == 2
    await asyncio.to_thread(stack.wait_for_new_pid, f"worker-{node}", old)


async def test_nats_is_killed_in_mid_answer(stack: Stack, arriero: Arriero) -> None:
    whole = await uncut(arriero, LONG)
    job = await submit(arriero)
    reader = Reader(job)
    await reader.has(20)
    old = stack.kill("nats")
    await asyncio.to_thread(stack.wait_for_new_pid, "nats", old)
    assert await reader.whole() == whole
    assert (await job.result(timeout=60)).text == whole
