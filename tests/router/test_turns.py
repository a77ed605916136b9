"""Heaps of heads and kept rosters against counting through everything: what is quick must also be right."""

import random

import pytest

from libs.common.contracts.nodes import DiskModel, Heartbeat, LoadedModel
from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey
from services.router import objections
from services.router.catalog import Catalog
from services.router.fleet import Hold, NodeView, Preload
from services.router.queue import PendingQueue, Waiting
from services.router.roster import Roster

CLIENTS, MODELS = [f"c{n}" for n in range(5)], ["a:1", "b:1", "c:1"]
LIMITED = {"c1": 2}


def counted_through(
    queue: PendingQueue, waiting: dict[JobKey, Waiting], runs: dict[str, int], model: str
) -> list[JobKey]:
    """Each lane in order of deadlines, the lanes merged by turns: served one after the other, nobody charged."""
    lanes: dict[tuple[int, str], list[Waiting]] = {}
    for key, job in waiting.items():
        rank = queue._jobs[key][1]
        limit = LIMITED.get(key.client)
        if job.model == model and not (limit and runs.get(key.client, 0) >= limit):
            lanes.setdefault((rank, key.client), []).append(job)
    for lane in lanes.values():
        lane.sort(key=lambda job: (job.deadline_ms, job.submitted))
    order = []
    while lanes:
        first = min(lanes, key=lambda lane: queue._turn(lanes[lane][0], lane[0]))
        order.append(lanes[first].pop(0).key)
        if not lanes[first]:
            del lanes[first]
    return order


@pytest.mark.parametrize("seed", range(20))
def test_turns_are_those_of_counting_through(seed: int) -> None:
    chance, queue = random.Random(seed), PendingQueue()
    waiting: dict[JobKey, Waiting] = {}
    running: list[JobKey] = []
    runs: dict[str, int] = {}
    for n in range(400):
        now, what = float(n), chance.random()
        if what < 0.5 or not waiting:
            client = chance.choice(CLIENTS)
            job = Waiting(
                JobKey(client, f"j{n}"), chance.choice(MODELS), chance.choice(list(Priority)), n, now * 1000,
                now * 1000 + chance.choice((50_000, 500_000)), chance.choice((10, 1000)), max_running=LIMITED.get(client, 0),
            )  # fmt: skip
            waiting[job.key] = job
            queue.add(job)
        elif what < 0.6:
            key = chance.choice(list(waiting))
            del waiting[key]
            queue.discard(key)
        elif what < 0.8:
            for head in list(queue.heads())[:1]:
                del waiting[head.key]
                queue.serve(head.key, now)
                running.append(head.key)
                runs[head.key.client] = runs.get(head.key.client, 0) + 1
        elif running:
            key = running.pop(chance.randrange(len(running)))
            runs[key.client] -= 1
            queue.ended(key, now, tokens=chance.choice((5.0, 2000.0)))
        if n % 50 == 0:
            queue.rise(now * 1000 + 400_000)
        expected = {model: counted_through(queue, waiting, runs, model) for model in MODELS}
        assert {head.model: head.key for head in queue.heads()} == {m: keys[0] for m, keys in expected.items() if keys}
        model = chance.choice(MODELS)
        assert [job.key for job in queue.turns(model, 5)] == expected[model][:5]


@pytest.mark.parametrize("seed", range(20))
def test_a_roster_kept_up_to_date_is_that_of_a_full_look(seed: int) -> None:
    chance, catalog, now = random.Random(seed), Catalog(), 1000.0
    nodes: dict[str, NodeView] = {}

    def beat(name: str, n: int) -> Heartbeat:
        return Heartbeat(
            node=name, boot=f"b{n // 100}", beat=n, changes=n, slots=chance.choice((1, 2)), vram=24 * 10**9,
            models=tuple(DiskModel(name=m, size=10**9) for m in chance.sample(MODELS, 2)),
            loaded=tuple(LoadedModel(name=m, size=1, size_vram=1) for m in chance.sample(MODELS, chance.choice((0, 1, 2)))),
            draining=chance.random() < 0.1, cold_stuck=chance.random() < 0.1,
        )  # fmt: skip

    kept = Roster(nodes, catalog)
    for n in range(1, 300):
        now += chance.choice((0.0, 0.1, 1.0))
        name = f"n{chance.randrange(4)}"
        node, what = nodes.get(name), chance.randrange(8)
        run = (JobKey("c", f"j{chance.randrange(6)}"), 1)
        if node is None or (what == 0 and chance.random() < 0.2):
            nodes[name] = NodeView(name, beat(name, n), heard_at=now)
        elif what <= 2:
            node.take(beat(name, n), now)
        elif what == 3:
            node.reserve(run, Hold(chance.choice(MODELS)))
        elif what == 4:
            node.release(run, n)
        elif what == 5:
            node.failed(run[0], now)
        elif what == 6:
            node.succeeded()
        else:
            node.preload(chance.choice(MODELS), Preload(now))
        kept.refresh(now, 500.0)
        fit = {v.name for v in nodes.values() if objections.unfit(v, catalog, now=now, connected_at=500.0) is None}
        assert list(kept.fit) == sorted(fit)
        assert list(kept.unfit) == sorted(nodes.keys() - fit)
        assert all(kept.fit[name] is nodes[name] for name in fit)
        assert set(kept.free) == {name for name in fit if nodes[name].free_slots > 0}
        assert kept.slots == sum(nodes[name].beat.slots for name in fit)
        for model in MODELS:
            able = {name for name in fit if kept.objection(model, nodes[name], Priority.NORMAL) is None}
            assert list(kept.able(model, Priority.NORMAL)[0]) == sorted(able)
            holding = {name for name in able if model in nodes[name].resident | nodes[name].loading}
            assert list(kept.holders(model, Priority.NORMAL)) == sorted(holding)
