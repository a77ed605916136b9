"""Every service is restarted in turn under steady load: no request fails, no token is lost or comes twice (DESIGN §7)."""

import asyncio
import contextlib
import itertools
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.support.clients import parse_sse
from tests.support.sim_process import SimProcess
from tests.support.stack import Stack, running_stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

SIM = (
    "--models", "native:1=1GB:tools:native", "--seed", "7", "--slots", "4", "--disk-gbps", "100", "--decode-tps", "48",
)  # fmt: skip
GRACE_S = 2.0  # less than a long answer takes: some are ended by their gateway, or handed over by their worker
SHORT, LONG = 15, 120  # tokens, at 48 a second when a node has nothing else to do
# A chat that is not detached is not resumed: it must be short enough for the grace.
LENGTH = {"polled": SHORT, "streamed": LONG, "detached": LONG, "chatted": SHORT}
MAX_TRIES = 200  # of one request
PAUSE_S = 0.05  # between two tries


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two of everything that can be two."""
    sims = [SimProcess(*SIM), SimProcess(*SIM)]
    arguments = ["--no-demo", "--gateways", "2", "--routers", "2", "--slots", "4", "--drain-grace", f"{GRACE_S:g}"]
    try:
        nodes = ["--nodes", ",".join(sim.url for sim in sims)]
        with running_stack(tmp_path_factory.mktemp("rolling"), *arguments, *nodes) as stack:
            yield stack
    finally:
        for sim in sims:
            sim.kill()


class Proxy:
    """A client with two gateways, as a load balancer has them: it goes to the other one when a connection is refused, or
    when a 503 says that this one shuts down. Nothing else is tried again, and every request has a connection of its own."""

    def __init__(self, up: dict[str, Any], second: str) -> None:
        self._urls = [up["gateway"], second]
        self._key = up["api_key"]
        self._turns = itertools.cycle([0, 1])
        self.went_over: Counter[str] = Counter()
        self.resumed = 0
        self.begun: Counter[str] = Counter()  # streams that can be resumed, by gateway

    @contextlib.asynccontextmanager
    async def send(self, method: str, path: str, **more: Any) -> AsyncIterator[httpx.Response]:
        turn = next(self._turns)
        async with contextlib.AsyncExitStack() as stack:
            for n in range(MAX_TRIES):
                client = await stack.enter_async_context(self._client(self._urls[(turn + n) % 2]))
                try:
                    response = await stack.enter_async_context(client.stream(method, path, **more))
                except httpx.ConnectError:
                    self.went_over["refused"] += 1
                else:
                    if response.status_code != 503:
                        break
                    said = json.loads(await response.aread())
                    if (said.get("code") or said["error"]["code"]) != "draining":
                        break
                    self.went_over["draining"] += 1
                await stack.aclose()
                await asyncio.sleep(PAUSE_S)
            else:
                raise AssertionError(f"no gateway took {method} {path}")
            yield response

    def _client(self, url: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {self._key}"}, timeout=60)

    async def json(self, method: str, path: str, status: int, **more: Any) -> Any:
        async with self.send(method, path, **more) as response:
            said = await response.aread()
            assert response.status_code == status, (method, path, response.status_code, said)
            return json.loads(said)

    async def begins_at(self, url: str) -> None:
        """Until a stream has just begun there: longer than the grace, so the gateway has to end it."""
        before = self.begun[url]
        await eventually(lambda: self.begun[url] > before, within=60)

    # -- what clients do -------------------------------------------------------------------------------------------------

    async def polled(self, asked: str) -> str:
        made = await self.json("POST", "/jobs", 202, json=_job(asked))
        while True:
            view = await self.json("GET", f"/jobs/{made['id']}", 200, params={"wait": "20"})
            if view["finished_at"]:
                assert view["state"] == "succeeded", view
                return str(view["result"]["message"]["content"])

    async def streamed(self, asked: str) -> str:
        """A job's own stream; a gateway that shuts down ends it, and another goes on with it."""
        made = await self.json("POST", "/jobs", 202, json=_job(asked))
        text = await self._read("GET", f"/jobs/{made['id']}/stream", {}, "event: succeeded")
        return "".join(json.loads(event.data)["text"] for event in parse_sse(text) if event.event == "token")

    async def chatted(self, asked: str, *, detached: bool) -> str:
        """OpenAI's stream. One that is not detached must be finished by the gateway that began it."""
        headers = {"Arriero-Detach": "true"} if detached else {}
        body = {"model": "native:1", "messages": [{"role": "user", "content": asked}], "stream": True}
        path = "/v1/chat/completions"
        if detached:
            text = await self._read("POST", path, {"json": body, "headers": headers}, "data: [DONE]")
        else:
            async with self.send("POST", path, json=body) as response:
                assert response.status_code == 200, await response.aread()
                text = (await response.aread()).decode()
        events = parse_sse(text)
        assert events[-1].data == "[DONE]", text
        chunks = [json.loads(event.data) for event in events[:-1]]
        assert len({chunk["created"] for chunk in chunks}) == 1
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)

    async def _read(self, method: str, path: str, more: dict[str, Any], last: str) -> str:
        """Every event once, whoever told it; those without a position (states, errors) count for nothing here."""
        seen: dict[str, str] = {}
        while True:
            async with self.send(method, path, **more) as response:
                assert response.status_code == 200, await response.aread()
                job = response.headers["arriero-job-id"]
                if not seen:
                    self.begun[f"http://{response.url.netloc.decode()}"] += 1
                text = (await response.aread()).decode()
            for event in parse_sse(text):
                if event.id:
                    assert event.id not in seen, f"{event.id} came twice"
                    seen[event.id] = event.raw
            if last in text:
                return "".join(seen.values())
            self.resumed += 1
            if method == "POST":
                method, path = "GET", f"{path}/{job}"
            more = {"params": {"stream": "true", "after": list(seen)[-1] if seen else ""}}


def asked(tokens: int) -> str:
    return f"Go on, please. [[tokens={tokens}]]"


def _job(asked: str) -> dict[str, Any]:
    return {"model": "native:1", "messages": [{"role": "user", "content": asked}]}


class Load:
    """Clients that ask one thing after the other until they are told to stop."""

    def __init__(self, proxy: Proxy, right: dict[str, str]) -> None:
        self._proxy = proxy
        self._right = right
        self._stopping = False
        self.answered: Counter[str] = Counter()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for kind in LENGTH:
                tasks.create_task(self._client(kind), name=kind)

    def stop(self) -> None:
        self._stopping = True

    async def _client(self, kind: str) -> None:
        while not self._stopping:
            question = asked(LENGTH[kind])
            match kind:
                case "polled":
                    said = await self._proxy.polled(question)
                case "streamed":
                    said = await self._proxy.streamed(question)
                case _:
                    said = await self._proxy.chatted(question, detached=kind == "detached")
            assert said == self._right[question], f"{kind}: not the answer that an undisturbed fleet gives"
            self.answered[kind] += 1

    async def goes_on(self) -> bool:
        """Has each kind of client had another answer since?"""
        before = Counter(self.answered)
        return bool(await eventually(lambda: all(self.answered[kind] > before[kind] for kind in LENGTH), within=60))


async def test_every_service_is_restarted_under_load_and_nobody_notices(stack: Stack) -> None:
    """SIGTERM to each service in turn, the next one when it is back, while streamed and polled answers go on."""
    up = stack.up
    urls = {"gateway": up["gateway"], "gateway-2": f"http://127.0.0.1:{stack.base + 50}"}
    proxy = Proxy(up, urls["gateway-2"])
    right = {asked(length): await proxy.polled(asked(length)) for length in (SHORT, LONG)}
    load = Load(proxy, right)
    running = asyncio.create_task(load.run())
    try:
        await eventually(lambda: len(load.answered) == len(LENGTH) or running.done(), within=60)
        for name in ("gateway", "gateway-2", "router", "router-2", *(n for n in up["pids"] if n.startswith("worker-"))):
            if name.startswith("gateway"):
                await proxy.begins_at(urls[name])
            old = stack.kill(name, signal.SIGTERM)
            await asyncio.to_thread(stack.wait_for_new_pid, name, old)
            assert not running.done(), running.result()
        assert await load.goes_on()
    finally:
        load.stop()
        await asyncio.wait_for(running, 30)
    assert proxy.went_over, "no restart of a gateway was met"
    assert proxy.resumed, "no answer was met in the middle"
    assert "was killed" not in stack.output.read_text()
