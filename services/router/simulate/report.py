"""The figures of one run. Seconds; percentiles are interpolated linearly between the neighbours."""

from collections.abc import Sequence
from itertools import groupby

import msgspec

from services.router.simulate.fairness import Stay, jain, ratios
from services.router.simulate.simulation import Outcome

DIGITS = 6


class ClientReport(msgspec.Struct, frozen=True, kw_only=True):
    jobs: int
    ttft_p95: float
    longest_wait: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    jobs: int
    ttft_p50: float  # time to first token: from the arrival
    ttft_p95: float
    ttft_p99: float
    ttft_mean: float
    makespan: float  # from the first arrival to the last end
    loads_per_1000: float
    jain: float
    longest_wait: float  # until the first token
    clients: dict[str, ClientReport]


def report(outcome: Outcome) -> Report:
    """`outcome` has at least one job."""
    runs = [run for run, _ in outcome.runs]
    waits = sorted((run.job.client, run.first_token_at - run.job.arrived_at) for run in runs)
    clients = {
        client: _client([wait for _, wait in group]) for client, group in groupby(waits, key=lambda pair: pair[0])
    }
    ordered = sorted(wait for _, wait in waits)
    stays = (Stay(run.job.client, run.job.arrived_at, run.started_at, run.finished_at) for run in runs)
    return Report(
        jobs=len(runs),
        ttft_p50=_rounded(percentile(ordered, 50)),
        ttft_p95=_rounded(percentile(ordered, 95)),
        ttft_p99=_rounded(percentile(ordered, 99)),
        ttft_mean=_rounded(sum(ordered) / len(ordered)),
        makespan=_rounded(max(run.finished_at for run in runs) - min(run.job.arrived_at for run in runs)),
        loads_per_1000=_rounded(1000 * outcome.loads / len(runs)),
        jain=_rounded(jain(ratios(stays).values())),
        longest_wait=_rounded(ordered[-1]),
        clients=clients,
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of sorted values, at least one."""
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _client(ordered: Sequence[float]) -> ClientReport:
    return ClientReport(
        jobs=len(ordered), ttft_p95=_rounded(percentile(ordered, 95)), longest_wait=_rounded(ordered[-1])
    )


def _rounded(value: float) -> float:
    return round(value, DIGITS)
