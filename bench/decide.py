"""What a decision of the router costs: 200 nodes, 20,000 jobs that wait, no network.

    python -m bench.decide [--nodes 200] [--jobs 20000] [--rounds 2000] [--profile CASE] [--json]

The production `Scheduler` in this process, with a clock of its own: decisions come as fast as slots of that fleet would free.
"""

import argparse
import cProfile
import gc
import json
import math
import pstats
import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from libs.common.contracts.nodes import DiskModel, Heartbeat, LoadedModel
from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey
from services.router import outlook
from services.router.fleet import Fleet, NodeView, RunKey
from services.router.look import Look
from services.router.loop import HOLD_S
from services.router.pricing import Ask
from services.router.queue import Waiting, cost
from services.router.scheduler import Scheduler
from services.router.wishes import Loading, Placement

GB = 10**9
SLOTS, VRAM, RESIDENT = 4, 48 * GB, 3
MODELS, CLIENTS = 20, 50
JOB_S = 5.0  # of a slot
BEGIN_S = 1000.0
PRIORITIES = (Priority.INTERACTIVE, Priority.NORMAL, Priority.BATCH)
AFFINE = 0.3  # share of jobs with a conversation


class World:
    """Fleet, queue and a clock; `seed` decides everything."""

    def __init__(self, nodes: int, jobs: int, seed: int = 1) -> None:
        self.chance = random.Random(seed)
        self.now = BEGIN_S
        self.models = [f"model{n}:7b" for n in range(MODELS)]
        self._weights = [1 / (n + 1) for n in range(MODELS)]
        self.scheduler = Scheduler(Fleet())
        self.running: deque[tuple[NodeView, RunKey]] = deque()
        self._number = 0
        self._beats = 0
        sizes = {model: 4 * GB + n * GB // 5 for n, model in enumerate(self.models)}
        self._disk = tuple(DiskModel(name=name, size=size) for name, size in sizes.items())
        for n in range(nodes):
            held = {self.models[n % MODELS], *self.chance.choices(self.models, self._weights, k=RESIDENT - 1)}
            beat = self._beat(f"node{n:03}", sorted(held))
            self.scheduler.fleet.nodes[beat.node] = NodeView(beat.node, beat, heard_at=self.now)
            for model, size in sizes.items():
                self.scheduler.pricing.rates.learn(
                    beat.node, model, size, new_tokens=500, prefill_s=self.chance.uniform(0.2, 0.5),
                    output_tokens=200, decode_s=self.chance.uniform(3, 6), load_s=size / 2e9,
                )  # fmt: skip
        for model in self.models:
            self.scheduler.pricing.worked(model, JOB_S)
        while len(self.scheduler.queue) < jobs:
            self.submit()

    @property
    def rate(self) -> float:
        """Slots that free in a second when all are busy."""
        return len(self.scheduler.fleet.nodes) * SLOTS / JOB_S

    def submit(self) -> None:
        self._number += 1
        chance, pricing = self.chance, self.scheduler.pricing
        model = chance.choices(self.models, self._weights)[0]
        priority = chance.choices(PRIORITIES, (2, 6, 2))[0]
        key = JobKey(f"client{chance.randrange(CLIENTS)}", f"job{self._number}")
        chain: tuple[str, ...] = ()
        if chance.random() < AFFINE:
            talk = chance.randrange(2000)
            chain = tuple(f"{model}-{talk}-{turn}:{turn * 200}" for turn in range(1, 5))
        expected = pricing.rates.answer_tokens(key.client, model, 0)
        prompt = 1000 if chain else 300
        ms = self.now * 1000
        waiting = Waiting(key, model, priority, self._number, ms, ms + 3_600_000, cost(prompt, expected))
        pricing.demand.asked(model, self.now)
        self.scheduler.add(waiting, Ask(model, priority, prompt, expected, chain))

    def wanted(self, hold_s: float = math.inf) -> bool:
        """One look, and what it wants is done, as the shell does it; False: it was put down after so many seconds of CPU."""
        began = time.process_time()
        for wish in iter(Look(self.scheduler, self.now, self.now * 1000, BEGIN_S).step, None):
            if isinstance(wish, Loading):
                wish.node.preload(wish.model, wish.order)
            elif isinstance(wish, Placement):
                self.bind(wish)
            if time.process_time() - began >= hold_s:
                return False
        return True

    def bind(self, wish: Placement) -> None:
        run = (wish.job.key, wish.job.submitted)
        wish.node.reserve(run, wish.hold)
        self.scheduler.commit(wish, self.now)
        self.running.append((wish.node, run))

    def settle(self) -> None:
        """Until no further copy of a model is worth its load."""
        while True:
            self.now += 2.0
            loads = sum(len(node.preloads) for node in self.scheduler.fleet.nodes.values())
            for node in self.scheduler.fleet.nodes.values():
                self.hear(node)
            self.wanted()
            if not loads and not any(node.preloads for node in self.scheduler.fleet.nodes.values()):
                return

    def free_one(self) -> None:
        node, run = self.running.popleft()
        node.release(run, 0)
        self.scheduler.queue.ended(run[0], self.now, tokens=700.0)

    def hear(self, node: NodeView) -> None:
        """Its next heartbeat: nothing is new but that it lives, and what was ordered is in memory by now."""
        held = {model.name for model in node.beat.loaded} | node.loading
        for hold in node.holds.values():
            held -= set(hold.evict)
        for order in node.preloads.values():
            held -= set(order.evict)
        for model in list(node.preloads):
            node.preload_ended(model)
        node.take(self._beat(node.name, sorted(held)), self.now)

    def _beat(self, name: str, held: list[str]) -> Heartbeat:
        self._beats += 1
        return Heartbeat(
            node=name, boot="bench", beat=self._beats, changes=0, slots=SLOTS, models=self._disk, vram=VRAM,
            loaded=tuple(LoadedModel(name=model, size=6 * GB, size_vram=6 * GB) for model in held),
        )  # fmt: skip


def timed(do: Callable[[], Any]) -> float:
    """µs of CPU: other work on the machine does not count."""
    began = time.process_time()
    do()
    return (time.process_time() - began) * 1e6


def late(world: World, rounds: int) -> list[float]:
    """All slots busy, one frees at a time: release, look, placement, commit, and the look that finds nothing more."""
    spent = []
    nodes = deque(world.scheduler.fleet.nodes.values())

    def one() -> None:
        world.free_one()
        world.wanted()

    for _ in range(rounds):
        world.now += 1 / world.rate
        world.hear(nodes[0])  # each node speaks once in so many decisions, more often than once a second and node
        nodes.rotate(-1)
        spent.append(timed(one))
        world.submit()
    return spent


def fill(world: World) -> list[float]:
    """The first looks at an empty fleet, until every slot is taken and every copy ordered: how long each holds the loop."""
    spent, is_done = [], False

    def one() -> None:
        nonlocal is_done
        is_done = world.wanted(HOLD_S)

    while not is_done:
        spent.append(timed(one))
    return spent


def burst(world: World, rounds: int) -> list[float]:
    """Every slot of the fleet is free: each placement of the one look, with its commit."""
    spent: list[float] = []
    while len(spent) < rounds:
        while world.running:
            world.free_one()
        world.now += JOB_S
        for node in world.scheduler.fleet.nodes.values():
            world.hear(node)
        before = len(world.running)
        world.scheduler.copies_at = world.now + 1.0  # `copies` measures that
        total = timed(world.wanted)
        placed = len(world.running) - before
        spent += [total / placed] * placed
        for _ in range(placed):
            world.submit()
    return spent


def idle(world: World, rounds: int) -> list[float]:
    """Nothing is free: a look that finds nothing."""
    spent = []
    for _ in range(rounds):
        world.now += 1 / world.rate
        for node in world.scheduler.fleet.nodes.values():
            node.heard_at = world.now
        spent.append(timed(world.wanted))
    return spent


def place(world: World, rounds: int) -> list[float]:
    """Why a job that waits is not bound: what each question costs besides the places, which are reckoned for all at once."""
    asks = list(world.scheduler.asks.values())[:rounds]

    def one(ask: Ask) -> None:
        outlook.why_not(Look(world.scheduler, world.now, world.now * 1000, BEGIN_S), ask)

    return [timed(lambda: one(ask)) for ask in asks]  # noqa: B023 - called at once


def places(world: World, rounds: int) -> list[float]:
    """The places of all, which the router reckons again when that takes no more than a twentieth of its time."""

    def one() -> None:
        look = Look(world.scheduler, world.now, world.now * 1000, BEGIN_S)
        outlook.places(world.scheduler.queue, look, world.scheduler.asks)

    return [timed(one) for _ in range(3)]


def copies(world: World, rounds: int) -> list[float]:
    """Once a second: is another copy of a model worth its load? It is not."""
    spent = []
    for _ in range(20):
        world.now += 2.0
        for node in world.scheduler.fleet.nodes.values():
            world.hear(node)
        look = Look(world.scheduler, world.now, world.now * 1000, BEGIN_S)
        spent.append(timed(look.next))
    return spent


CASES = {"late": late, "burst": burst, "idle": idle, "place": place, "places": places, "copies": copies}


def measure(nodes: int, jobs: int, rounds: int, profile: str | None) -> dict[str, dict[str, float]]:
    found = {}
    world = World(nodes, jobs)
    gc.collect()
    gc.freeze()  # as the router does after its rebuild: a pass through all jobs takes 70 ms
    holds = fill(world)
    found["fill, a hold"], found["fill, all"] = _figures(holds), _figures([sum(holds)])
    world.settle()
    gc.collect()
    gc.freeze()
    for name, case in CASES.items():
        if profile and name != profile:
            continue
        with cProfile.Profile() if profile else _Nothing() as profiler:
            spent = case(world, rounds)
        if profile:
            pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
        found[name] = _figures(spent)
    return found


def _figures(spent: list[float]) -> dict[str, float]:
    return {
        "mean_us": statistics.mean(spent),
        "p50_us": statistics.median(spent),
        "p99_us": sorted(spent)[int(len(spent) * 0.99)],
        "max_us": max(spent),
    }


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2000, help="decisions measured in each case")
    parser.add_argument("--profile", choices=list(CASES), help="one case under cProfile")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.nodes, given.jobs, given.rounds, given.profile)
    if given.json:
        print(json.dumps(found))
        return
    print(f"{'microseconds':14}{'mean':>10}{'p50':>10}{'p99':>10}{'max':>10}")
    for name, figures in found.items():
        print(f"{name:14}" + "".join(f"{value:10.1f}" for value in figures.values()))


if __name__ == "__main__":
    main()
