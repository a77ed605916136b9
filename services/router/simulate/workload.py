"""Synthetic workloads, seeded. Jobs are drawn first, then the moments of their arrival, so that a target load can be met.

Load ρ: work that arrives per second ÷ what the fleet can do per second, both in slot-seconds, if every model were loaded
everywhere and no prompt were cached. Loads, and models that do not fit every node, come on top: at ρ 0.9 the oracle is
busy, others may be overloaded. Where popularity shifts, arrivals slow down while larger models are popular, so that the
load stays what it is.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from libs.common.contracts.requests import Priority
from services.router.simulate.failures import BadInput
from services.router.simulate.fleet import Fleet
from services.router.simulate.trace import TraceJob

ZIPF = 1.0  # the n-th model of the fleet file is asked for 1/n as often as the first
PROMPT_TOKENS, OUTPUT_TOKENS = 600, 200  # medians of log-normal lengths
PROMPT_SPREAD, OUTPUT_SPREAD = 0.9, 0.7  # their sigmas
MAX_TOKENS = 32_000
CLIENTS = ("ann", "ben", "cleo", "dan", "eve")
FLOODER = "flood"
FLOOD_SHARE = 0.6  # of all jobs
FLOOD_BEGINS, FLOOD_ENDS = 0.1, 0.5  # of the whole time: while it lasts, far more arrives than the fleet can do
BURST_SHARE, BURST_FACTOR = 0.2, 3.0  # a fifth of the time has three times the mean rate
BURST_JOBS = 60  # mean number of jobs between the beginnings of two bursts
SHIFTS = 4  # the popularity of models changes so often
MEAN_TURNS = 6
THINK_S = 30.0  # mean, from one answer (at the speed of the fleet) to the next turn
PRIORITIES = {Priority.INTERACTIVE: 0.3, Priority.NORMAL: 0.5, Priority.BATCH: 0.2}


class Draft(NamedTuple):
    """A job without its time."""

    model: str
    prompt_tokens: int
    output_tokens: int
    client: str
    priority: Priority | None = None
    conversation: str | None = None


def names() -> list[str]:
    return list(WORKLOADS)


def describe() -> str:
    """One line for each, for the help."""
    width = max(map(len, WORKLOADS))
    return "\n".join(f"  {name:<{width}}  {(make.__doc__ or '').splitlines()[0]}" for name, make in WORKLOADS.items())


def make_workload(
    name: str, fleet: Fleet, *, jobs: int, seed: int, load: float = 0.9, rate: float | None = None
) -> list[TraceJob]:
    """`rate`: jobs per second, instead of `load`. In order of `t`. Raises BadInput."""
    if name not in WORKLOADS:
        raise BadInput(f"there is no workload {name!r}: choose from {', '.join(WORKLOADS)}")
    drafts, times = WORKLOADS[name](fleet, jobs, Random(f"{name}/{seed}"))
    per_s = rate if rate is not None else load * capacity(fleet, drafts)
    made = [
        TraceJob(
            t=round(place / per_s, 6),
            model=draft.model,
            prompt_tokens=draft.prompt_tokens,
            output_tokens=draft.output_tokens,
            client=draft.client,
            priority=draft.priority,
            conversation=draft.conversation,
        )
        for draft, place in zip(drafts, times(per_s), strict=True)
    ]
    made.sort(key=lambda job: job.t)
    return made


def capacity(fleet: Fleet, drafts: Sequence[Draft]) -> float:
    """Jobs like these per second, if every model were loaded everywhere and no prompt were cached."""
    total = 0.0
    for node in fleet.nodes:
        seconds = 0.0
        for draft in drafts:
            size_gb = fleet.models[draft.model].size_gb
            seconds += node.prefill_s(draft.prompt_tokens, size_gb)
            seconds += node.decode_s(draft.output_tokens, size_gb)
        total += node.slots * len(drafts) / seconds
    return total


Times = Callable[[float], list[float]]  # from jobs per second to the arrivals, counted in mean gaps
Made = tuple[list[Draft], Times]


def steady(fleet: Fleet, jobs: int, chance: Random) -> Made:
    """Poisson arrivals, Zipf popularity, five equal clients."""
    drafts = [_draft(model, chance) for model in _models(fleet, jobs, chance)]
    return drafts, _fixed(_poisson(jobs, chance))


def bursts(fleet: Fleet, jobs: int, chance: Random) -> Made:
    """The same, with three times the rate in a fifth of the time."""
    drafts = [_draft(model, chance) for model in _models(fleet, jobs, chance)]
    return drafts, _fixed(_bursty(jobs, chance))


def shift(fleet: Fleet, jobs: int, chance: Random) -> Made:
    """Another order of popularity in each quarter of the jobs."""
    drafts = [_draft(model, chance) for model in _models(fleet, jobs, chance, shifts=SHIFTS)]
    return drafts, _fixed(_even(fleet, drafts, _poisson(jobs, chance)))


def flood(fleet: Fleet, jobs: int, chance: Random) -> Made:
    """One client of five sends 60 % of all jobs, within 40 % of the time."""
    flooding = min(jobs, round(jobs * FLOOD_SHARE))
    models = _models(fleet, jobs, chance)
    drafts, times = [], []
    quiet = _poisson(jobs - flooding, chance)
    stretch = jobs / max(1, jobs - flooding)  # the quiet ones' gaps, in mean gaps of all
    for model, time in zip(models, quiet, strict=False):
        drafts.append(_draft(model, chance)._replace(client=chance.choice(CLIENTS[:4])))
        times.append(time * stretch)
    within = (FLOOD_ENDS - FLOOD_BEGINS) * jobs
    for model in models[jobs - flooding :]:
        drafts.append(_draft(model, chance)._replace(client=FLOODER))
        times.append(FLOOD_BEGINS * jobs + chance.random() * within)
    return drafts, _fixed(times)


def chat(fleet: Fleet, jobs: int, chance: Random) -> Made:
    """Conversations of several turns, each prompt with all turns before."""
    return _conversations(fleet, jobs, chance)


def mixed(fleet: Fleet, jobs: int, chance: Random) -> Made:
    """Bursts, shifting popularity, three priorities, and half of the jobs in conversations."""
    talks, talk_times = _conversations(fleet, jobs // 2, chance)
    single = jobs - jobs // 2
    classes, weights = list(PRIORITIES), list(PRIORITIES.values())
    drafts = [
        _draft(model, chance)._replace(priority=chance.choices(classes, weights)[0])
        for model in _models(fleet, single, chance, shifts=SHIFTS)
    ]
    times = [2 * time for time in _even(fleet, drafts, _bursty(single, chance))]  # half of the rate
    talks = [talk._replace(priority=Priority.INTERACTIVE) for talk in talks]
    return talks + drafts, lambda per_s: [2 * time for time in talk_times(per_s / 2)] + times


WORKLOADS: dict[str, Callable[[Fleet, int, Random], Made]] = {
    make.__name__: make for make in (steady, bursts, shift, flood, chat, mixed)
}


def _draft(model: str, chance: Random) -> Draft:
    return Draft(
        model,
        _tokens(PROMPT_TOKENS, PROMPT_SPREAD, chance),
        _tokens(OUTPUT_TOKENS, OUTPUT_SPREAD, chance),
        chance.choice(CLIENTS),
    )


def _conversations(fleet: Fleet, jobs: int, chance: Random) -> Made:
    """A turn comes when its predecessor has been answered and read: as fast as the fleet's mean node, without waiting."""
    drafts: list[Draft] = []
    begins: list[float] = []  # of the conversation, in mean gaps of conversations
    pauses: list[float] = []  # seconds from that beginning
    begun = 0.0
    number = 0
    speed = sum(node.decode_tps for node in fleet.nodes) / len(fleet.nodes)
    models = _models(fleet, jobs, chance)
    while len(drafts) < jobs:
        begun += chance.expovariate(1)
        number += 1
        model, client = models[number - 1], chance.choice(CLIENTS)
        turns = min(jobs - len(drafts), 1 + int(chance.expovariate(1 / (MEAN_TURNS - 0.5))))
        known, at = 0, 0.0
        for _ in range(turns):
            prompt = known + _tokens(PROMPT_TOKENS, PROMPT_SPREAD, chance)
            output = _tokens(OUTPUT_TOKENS, OUTPUT_SPREAD, chance)
            drafts.append(Draft(model, prompt, output, client, None, f"talk-{number}"))
            begins.append(begun)
            pauses.append(at)
            known = prompt + output
            at += output / speed + chance.expovariate(1 / THINK_S)
    gap = jobs / max(1, number)  # of conversations, in mean gaps of jobs

    def times(per_s: float) -> list[float]:
        return [begin * gap + pause * per_s for begin, pause in zip(begins, pauses, strict=True)]

    return drafts, times


def _models(fleet: Fleet, jobs: int, chance: Random, *, shifts: int = 1) -> list[str]:
    """Zipf over the models in the order of the fleet file; each shift shuffles that order anew, with another favourite."""
    ranked = list(fleet.models)
    weights = [1 / rank**ZIPF for rank in range(1, len(ranked) + 1)]
    drawn: list[str] = []
    for part in range(shifts):
        count = jobs * (part + 1) // shifts - len(drawn)
        drawn += chance.choices(ranked, weights, k=count)
        favourite = ranked[0]
        chance.shuffle(ranked)
        if ranked[0] == favourite:
            ranked.append(ranked.pop(0))
    return drawn


def _even(fleet: Fleet, drafts: list[Draft], times: list[float]) -> list[float]:
    """The same work per second in each shift: gaps grow with the work of its jobs."""
    whole = capacity(fleet, drafts)
    evened: list[float] = []
    now = before = 0.0
    for part in range(SHIFTS):
        begin, end = (len(times) * n // SHIFTS for n in (part, part + 1))
        if begin == end:
            continue
        stretch = whole / capacity(fleet, drafts[begin:end])
        for time in times[begin:end]:
            now += (time - before) * stretch
            before = time
            evened.append(now)
    return evened


def _tokens(median: int, spread: float, chance: Random) -> int:
    return max(1, min(MAX_TOKENS, round(chance.lognormvariate(math.log(median), spread))))


def _poisson(jobs: int, chance: Random) -> list[float]:
    times, now = [], 0.0
    for _ in range(jobs):
        now += chance.expovariate(1)
        times.append(now)
    return times


def _bursty(jobs: int, chance: Random) -> list[float]:
    """A Poisson process whose rate alternates; phases have exponential lengths, so that nothing beats in time."""
    calm_rate = (1 - BURST_SHARE * BURST_FACTOR) / (1 - BURST_SHARE)
    times: list[float] = []
    phase_begins = 0.0
    for rate, mean_length in _alternating(calm_rate):
        phase_ends = phase_begins + chance.expovariate(1 / mean_length)
        now = phase_begins + chance.expovariate(rate)
        while now < phase_ends:
            times.append(now)
            if len(times) == jobs:
                return times
            now += chance.expovariate(rate)
        phase_begins = phase_ends
    raise AssertionError("phases never end")


def _alternating(calm_rate: float) -> Iterator[tuple[float, float]]:
    while True:
        yield calm_rate, BURST_JOBS * (1 - BURST_SHARE)
        yield BURST_FACTOR, BURST_JOBS * BURST_SHARE


def _fixed(times: list[float]) -> Times:
    return lambda per_s: times
