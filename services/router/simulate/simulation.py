"""The loop of events: arrivals, loads, first tokens, ends. Virtual time, one heap.

At one moment ends come before arrivals, so that a slot that is free is seen to be free.
"""

import heapq
from collections.abc import Sequence
from enum import IntEnum
from random import Random
from typing import Any, NamedTuple

from libs.common.contracts.requests import Priority
from services.router.simulate.fleet import Fleet
from services.router.simulate.machine import Load, Node, Run
from services.router.simulate.policy import Binding, Factory, Job, Observed, Policy, Preload
from services.router.simulate.trace import DEFAULT_CLIENT, TraceJob


class Kind(IntEnum):
    """In the order in which they happen at one moment."""

    LOADED = 0
    FIRST_TOKEN = 1
    FINISHED = 2
    ARRIVED = 3
    WAKE = 4


class Outcome(NamedTuple):
    runs: list[tuple[Run, str]]  # in the order of arrival, each with its node
    loads: int


class PolicyFailed(Exception):
    """The policy broke the rules of the simulation: a job bound twice or never, an unknown node, a wake in the past."""


def simulate(fleet: Fleet, jobs: Sequence[TraceJob], make_policy: Factory, *, seed: int) -> Outcome:
    """`jobs` in order of `t`; each of their models must fit a node (`check_models_fit`). Raises PolicyFailed."""
    return _Simulation(fleet, jobs, make_policy, seed).run()


class _Simulation:
    def __init__(self, fleet: Fleet, jobs: Sequence[TraceJob], make_policy: Factory, seed: int) -> None:
        # What is loaded at the beginning follows from the policy, which is made of the nodes.
        nodes = [Node(spec, fleet.models) for spec in fleet.nodes]
        self.policy: Policy = make_policy(nodes, fleet.models, Random(seed))
        if self.policy.everything_loaded:
            for node in nodes:
                node.load_everything()
        self.nodes = {node.name: node for node in nodes}
        self.models = fleet.models
        self.runs = [Run(_job(number, job), job.output_tokens) for number, job in enumerate(jobs)]
        self.bound_to: list[str | None] = [None] * len(jobs)
        self.events: list[tuple[float, Kind, int, Any]] = [
            (run.job.arrived_at, Kind.ARRIVED, number, run) for number, run in enumerate(self.runs)
        ]  # in order of time: a heap
        self.count = len(self.events)
        self.wake: float | None = None

    def run(self) -> Outcome:
        events, policy = self.events, self.policy
        while events:
            now, kind, _, what = heapq.heappop(events)
            match kind:
                case Kind.ARRIVED:
                    self._bind_all(policy.arrived(what.job, now), now)
                case Kind.LOADED:
                    self._loaded(what[0], what[1], now)
                case Kind.FIRST_TOKEN:
                    run, node = what
                    seconds = run.first_token_at - run.ready_at
                    policy.first_token(run.job, node.name, now, seconds, run.prefilled_tokens)
                    self._at(now + run.decode_s, Kind.FINISHED, what)
                    continue
                case Kind.FINISHED:
                    self._finished(what[0], what[1], now)
                case Kind.WAKE:
                    if self.wake != now:
                        continue  # another one has been asked for since
                    self.wake = None
            self._bind_all(policy.changed(now), now)
            self._ask_for_wake(now)
        left = [run.job.id for run in self.runs if run.finished_at < 0]
        if left:
            raise PolicyFailed(f"{len(left)} jobs never ran, the first is number {left[0]}")
        loads = sum(node.loads_begun for node in self.nodes.values())
        return Outcome([(run, node or "") for run, node in zip(self.runs, self.bound_to, strict=True)], loads)

    def _at(self, time: float, kind: Kind, what: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, kind, self.count, what))

    def _bind_all(self, bindings: Any, now: float) -> None:
        for binding in bindings:
            if isinstance(binding, Preload):
                node = self.nodes[binding.node]
                node.preload(binding.model, binding.victims)
                self._begin_load(node, now)
            else:
                self._bind(binding, now)

    def _bind(self, binding: Binding, now: float) -> None:
        node = self.nodes.get(binding.node)
        if node is None:
            raise PolicyFailed(f"there is no node {binding.node!r}")
        if not 0 <= binding.job < len(self.runs) or self.runs[binding.job].job.arrived_at > now:
            raise PolicyFailed(f"job {binding.job} has not arrived")
        if self.bound_to[binding.job] is not None:
            raise PolicyFailed(f"job {binding.job} is bound twice")
        run = self.runs[binding.job]
        size = self.models[run.job.model].size_gb
        if size > node.spec.vram_gb and not self.policy.everything_loaded:
            raise PolicyFailed(f"the model of job {binding.job} takes {size:g} GB, {node.name} has less")
        self.bound_to[binding.job] = node.name
        run.bound_at, run.victims = now, binding.victims
        if node.free_slots:
            self._start(run, node, now)
            self._begin_load(node, now)
        else:
            node.queue.append(run)

    def _start(self, run: Run, node: Node, now: float) -> None:
        begun = node.take(run, now)
        self.policy.started(run.job, node.name, now)
        if begun:
            self._at(run.first_token_at, Kind.FIRST_TOKEN, (run, node))

    def _begin_load(self, node: Node, now: float) -> None:
        load = node.begin_load(now)
        if load is not None:
            self._at(now + node.spec.load_s(load.size_gb), Kind.LOADED, (load, node))

    def _loaded(self, load: Load, node: Node, now: float) -> None:
        for run in node.end_load(now):
            self._at(run.first_token_at, Kind.FIRST_TOKEN, (run, node))
        self.policy.loaded(load.model, node.name, now, now - load.began_at)
        self._begin_load(node, now)

    def _finished(self, run: Run, node: Node, now: float) -> None:
        node.finish(run, now)
        observed = Observed(
            load_s=run.ready_at - run.started_at,
            prefilled_tokens=run.prefilled_tokens,
            prefill_s=run.first_token_at - run.ready_at,
            output_tokens=run.output_tokens,
            decode_s=run.decode_s,
        )
        self.policy.finished(run.job, node.name, now, observed)
        self._begin_load(node, now)  # first: what waits for room has waited longer than what waits for a slot
        while node.queue and node.free_slots:
            self._start(node.queue.popleft(), node, now)
        self._begin_load(node, now)

    def _ask_for_wake(self, now: float) -> None:
        wake = self.policy.wake_at(now)
        if wake is None or wake == self.wake:
            return
        if wake <= now:
            raise PolicyFailed(f"asks at {now:g} s to be woken at {wake:g} s")
        self.wake = wake
        self._at(wake, Kind.WAKE, None)


def _job(number: int, job: TraceJob) -> Job:
    return Job(
        id=number,
        arrived_at=job.t,
        model=job.model,
        prompt_tokens=job.prompt_tokens,
        client=job.client or DEFAULT_CLIENT,
        priority=job.priority or Priority.NORMAL,
        conversation=None if job.conversation is None else str(job.conversation),
    )
