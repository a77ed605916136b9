"""Heartbeats, what they say of node and slots, and who else claims the node."""

import asyncio
import itertools
import time
from typing import Any, ClassVar

import pytest

from libs.common.bus.failures import Away
from libs.common.contracts import nodes
from libs.common.contracts.codec import encode
from libs.common.contracts.control import RunStatus, decode_pong
from libs.common.contracts.nodes import Heartbeat, decode_heartbeat
from libs.common.runtime import StartFailed
from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.faults import Fault as NodeFault
from libs.ollama_sim.faults import FaultKind
from libs.ollama_sim.server import SimServer, running
from services.worker import presence
from services.worker.main import start
from services.worker.ollama import Shown
from services.worker.settings import WorkerSettings
from tests.support.nats_server import NatsServer, connected, nats_server
from tests.support.waiting import eventually
from tests.worker.conftest import MODELS
from tests.worker.running import NODE, Gate, World, at_done

KEY = f"$KV.nodes.{NODE}"


async def test_a_heartbeat_tells_all_of_the_node(around: World, sim: SimServer) -> None:
    async with around.worker(sim.url, slots=3) as worker:
        await eventually(lambda: around.beat.models)
        job = await around.run(worker)
        await around.done(job)
        await eventually(lambda: around.beat.loaded)
        beat = around.beat
        stored = await around.bus.last("KV_nodes", KEY)
    assert (beat.node, beat.boot, beat.slots, beat.draining) == (NODE, worker.boot, 3, False)
    assert (beat.reachable, beat.problem, beat.ollama_version) == (True, "", "0.33.0")
    assert {model.name for model in beat.models} == {"chat:latest", "thinker:latest", "embed:latest"}
    assert all(model.digest and model.size and model.capabilities for model in beat.models)
    assert [model.name for model in beat.loaded] == ["chat:latest"]
    assert beat.loaded[0].digest in {model.digest for model in beat.models}
    assert [each.beat for _, each in around.beats] == list(range(1, len(around.beats) + 1))
    assert stored is not None
    assert decode_heartbeat(stored.data).boot == worker.boot
    assert "Nats-TTL" in stored.headers


async def test_a_model_that_a_run_has_had_loaded_is_told_of_with_its_first_token(
    around: World, sim: SimServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for it, without a slot (ADR 18)."""
    monkeypatch.setattr(presence, "BEAT_S", 120.0)  # what is in memory is due to be asked for once a minute
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        await around.done(await around.run(worker))
        await eventually(lambda: [model.name for model in around.beat.loaded] == ["chat:latest"])


async def test_heartbeats_come_every_two_seconds(
    around: World, sim: SimServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspect at 5 s, dead at 8 s: the beat is what the router's limits are made for (DESIGN §3)."""
    assert presence.BEAT_S == nodes.BEAT_S == 2.0
    monkeypatch.setattr(presence, "BEAT_S", 0.3)
    async with around.worker(sim.url):
        await eventually(lambda: around.beat.models)
        quiet = len(around.beats)
        await eventually(lambda: len(around.beats) >= quiet + 5)
    times = [at for at, _ in around.beats[quiet:]]
    assert all(0.2 < later - earlier < 1.0 for earlier, later in itertools.pairwise(times))


async def test_a_change_is_told_at_once(around: World, sim: SimServer) -> None:
    """Not with the next beat two seconds later: freed slots are what the router waits for."""
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        gate = Gate()
        worker.bus.before_append = at_done(gate.wait)
        began = time.monotonic()
        job = await around.run(worker)
        await eventually(lambda: [each.job for each in around.beat.running] == [job.key.job], within=1)
        await gate.reached.wait()
        gate.opened.set()
        await eventually(lambda: not around.beat.running, within=1)
        assert time.monotonic() - began < 1.5


async def test_a_change_while_a_beat_is_on_its_way_is_told_at_once(around: World, sim: SimServer) -> None:
    """The beat under way was made before the change; forgetting the change would delay it by a whole beat."""
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        gate = Gate()
        end = Gate()
        waiting = [gate]

        async def hold(subject: str) -> None:
            if subject == KEY and waiting:
                await waiting.pop().wait()
            if subject.endswith(".done"):
                await end.wait()

        worker.bus.before_append = hold
        await gate.reached.wait()
        job = await around.run(worker)
        assert not around.beat.running
        gate.opened.set()
        await eventually(lambda: [each.job for each in around.beat.running] == [job.key.job], within=1)
        end.opened.set()


async def test_changes_tell_which_answers_a_beat_has_seen(around: World, sim: SimServer) -> None:
    """An answer with changes = k is older than a beat with changes ≥ k: a run missing there has really ended."""
    async with around.worker(sim.url, slots=2) as worker:
        gate = Gate()
        worker.bus.before_append = at_done(gate.wait)
        jobs = []
        for _ in range(2):
            job = await around.submit(messages=[{"role": "user", "content": "Hi"}])
            answer = await around.ask(worker, await around.bind(worker, job))
            jobs.append((job, answer.changes))
        await eventually(lambda: around.beat.changes >= jobs[1][1])
        gate.opened.set()
        frees = {job.key.job: (await around.freed(job)).changes for job, _ in jobs}
        last = max(frees.values())
        await eventually(lambda: around.beat.changes >= last)
        first, _ = jobs[0]
        assert first.order
        assert (await around.ask(worker, first.order)).changes == last
    for _, beat in around.beats:
        listed = {each.job for each in beat.running}
        expected = {job.key.job for job, began in jobs if began <= beat.changes < frees[job.key.job]}
        assert listed == expected
    assert len({began for _, began in jobs} | set(frees.values())) == 4


async def test_an_ollama_that_answers_nonsense_and_recovers_is_told(around: World, sim: SimServer) -> None:
    """Not reachable, and nothing loaded; the models on disk stay known. Recovered: asked anew at once."""
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        await around.done(await around.run(worker))
        await eventually(lambda: around.beat.loaded)
        check = worker.running.checks["node"]
        assert check() is None
        sim.set_faults(NodeFault(FaultKind.HTML, route="/api/ps", count=0))
        await eventually(lambda: not around.beat.reachable)
        assert around.beat.problem
        assert around.beat.loaded == ()
        assert around.beat.models
        assert check() is not None
        sim.set_faults()
        await eventually(lambda: around.beat.reachable and around.beat.loaded)
        assert check() is None


async def test_a_worker_starts_without_its_ollama_and_notices_it(around: World) -> None:
    """Machines boot in any order."""
    async with running(NodeConfig(models=MODELS, is_instant=True)) as sim:
        port = sim.port
    async with around.worker(f"http://127.0.0.1:{port}") as worker:
        await eventually(lambda: around.beat.problem)
        assert not around.beat.reachable
        assert worker.running.checks["node"]() is not None
        async with running(NodeConfig(models=MODELS, is_instant=True), port=port):
            await eventually(lambda: around.beat.reachable and around.beat.models)
        await eventually(lambda: not around.beat.reachable)


async def test_a_ping_is_answered_with_node_and_boot(around: World, sim: SimServer) -> None:
    async with around.worker(sim.url) as worker:
        pong = decode_pong(await around.bus.request(f"ctl.{NODE}.{worker.boot}.ping"))
    assert (pong.node, pong.boot) == (NODE, worker.boot)


async def test_a_second_worker_refuses_while_the_first_answers(around: World, sim: SimServer, nats: NatsServer) -> None:
    """Two workers would each give the node its slots; after the first has gone the node is free."""
    settings = WorkerSettings(node=NODE, node_url=sim.url, nats_url=nats.url)
    async with around.worker(sim.url) as first, connected(nats) as bus:
        with pytest.raises(StartFailed, match=first.boot):
            async with start(settings, bus):
                pass
        await around.done(await around.run(first))
    async with around.worker(sim.url) as second:
        assert second.boot != first.boot


async def test_an_older_boot_that_sees_a_newer_one_stops(around: World, sim: SimServer) -> None:
    """It was frozen, say, and the node has another worker by now (DESIGN §3)."""
    async with around.worker(sim.url) as worker:
        older = Heartbeat(node=NODE, boot="0-older", beat=9, changes=0, slots=1)
        newer = Heartbeat(node=NODE, boot=f"f{worker.boot}", beat=1, changes=0, slots=1)
        elsewhere = Heartbeat(node="n2", boot=newer.boot, beat=1, changes=0, slots=1)
        await around.bus.append("$KV.nodes.n2", encode(elsewhere))
        await around.bus.append(KEY, encode(older))
        await around.bus.append(KEY, b"nonsense")
        assert (await around.ask(worker, await around.bind(worker, await around.submit()))).status is RunStatus.RUNNING
        assert not worker.tasks["namesakes"].done()
        await around.bus.append(KEY, encode(newer))
        with pytest.raises(RuntimeError):
            await asyncio.wait_for(worker.tasks["namesakes"], 5)


async def test_a_worker_without_its_bucket_starts_and_is_not_ready(tmp_path: Any, sim: SimServer) -> None:
    """Streams are made by `arriero nats init`; until then a service stays not ready and says so (DESIGN §3)."""
    async with (
        nats_server(tmp_path / "bare", provision=False) as nats,
        connected(nats) as bus,
        start(WorkerSettings(node=NODE, node_url=sim.url, nats_url=nats.url), bus) as worker,
    ):
        assert worker.checks["node"]() is not None
        for task in worker.tasks.values():
            task.close()


async def test_a_worker_that_cannot_ask_for_company_does_not_start(
    nats: NatsServer, sim: SimServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(nats) as bus:

        async def away(*_: Any) -> Any:
            raise Away("nobody there")

        monkeypatch.setattr(bus, "last", away)
        with pytest.raises(StartFailed):
            async with start(WorkerSettings(node=NODE, node_url=sim.url, nats_url=nats.url), bus):
                pass


async def test_beats_come_again_as_soon_as_nats_is_back(around: World, sim: SimServer, nats: NatsServer) -> None:
    """The router's patience has been used up meanwhile: the next regular beat could be two seconds away."""
    async with around.worker(sim.url) as worker:
        await eventually(lambda: around.beat.models)
        await nats.kill()
        await eventually(lambda: not worker.bus.connected and not around.bus.connected)
        before = len(around.beats)
        await nats.start()
        await eventually(lambda: worker.bus.connected and around.bus.connected)
        await eventually(lambda: len(around.beats) > before, within=3)


async def test_a_model_that_does_not_say_keeps_no_other_from_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "SHOW_S", 0.05)

    class Wedged:
        asked: ClassVar[list[str]] = []

        async def version(self) -> str:
            return "0.33.0"

        async def disk_models(self) -> tuple[nodes.DiskModel, ...]:
            return tuple(nodes.DiskModel(name=name) for name in ("a", "b", "c"))

        async def loaded_models(self) -> tuple[nodes.LoadedModel, ...]:
            return ()

        async def shown(self, model: str) -> Shown:
            self.asked.append(model)
            await asyncio.sleep(60 if model == "a" else 0)
            return Shown((), "", 7)

    inventory = presence.Inventory(Wedged())  # type: ignore[arg-type]  # the questions an inventory asks
    for _ in range(3):
        await asyncio.wait_for(inventory._ask(), 5)
    assert [model.prompt_bytes for model in inventory.models] == [0, 7, 7]
    assert Wedged.asked == ["a", "b", "c"]


async def test_what_only_show_tells_is_asked_for_once() -> None:
    class Old:
        asked = 0

        async def version(self) -> str:
            return "0.5.0"

        async def disk_models(self) -> tuple[nodes.DiskModel, ...]:
            return tuple(nodes.DiskModel(name=name) for name in ("a", "b"))

        async def loaded_models(self) -> tuple[nodes.LoadedModel, ...]:
            return ()

        async def shown(self, model: str) -> Shown:
            self.asked += 1
            return Shown((f"{model}-capability",), "", 7)

    old = Old()
    inventory = presence.Inventory(old)  # type: ignore[arg-type]  # the questions an inventory asks
    for _ in range(2):
        inventory._tags_at = -presence.TAGS_EVERY_S
        await inventory._ask()
    assert [model.capabilities for model in inventory.models] == [("a-capability",), ("b-capability",)]
    assert {model.prompt_bytes for model in inventory.models} == {7}
    assert old.asked == 2


async def test_a_model_that_answers_and_was_not_in_memory_has_the_node_asked_at_once() -> None:
    asked = asyncio.Event()

    class Node:
        async def version(self) -> str:
            return "0.5.0"

        async def disk_models(self) -> tuple[nodes.DiskModel, ...]:
            return ()

        async def loaded_models(self) -> tuple[nodes.LoadedModel, ...]:
            asked.set()
            return ()

    inventory = presence.Inventory(Node())  # type: ignore[arg-type]  # the questions an inventory asks
    watching = asyncio.create_task(inventory.watch())
    began, looks = time.monotonic(), 10
    for _ in range(looks):
        await asyncio.wait_for(asked.wait(), 30)
        asked.clear()
        inventory.answers("a")
    watching.cancel()
    assert time.monotonic() - began < looks * nodes.BEAT_S / 4  # half of what they take when they are due
