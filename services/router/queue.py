"""Jobs that wait for a slot, and whose turn it is. Pure.

Priority class first; inside a class the clients that lately had no more than their share; among them who came first; inside a
client the earliest deadline, then the oldest. Who waits long rises a class, so that nothing starves.

Shares are counted in tokens over the client's weight, as virtual token counters do (Sheng et al., OSDI 2024), but the past fades,
and a client within `TOLERANCE` of its share counts as level: always serving the smallest counter is fair to the token, and makes
everybody who asks at random wait far longer than first come, first served (ADR 8).

One lane per model, class and client, so that a look for work costs as many steps as there are lanes of the models that have
changed, not jobs. Entries of jobs that have left are dropped when they come up.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey

RANK = {Priority.INTERACTIVE: 0, Priority.NORMAL: 1, Priority.BATCH: 2}
RISES_AFTER_MS = 300_000  # waiting for a class of its own
TOLERANCE = 0.5  # of a share: chance alone brings that much within the memory of `FADES_S`
FADES_S = 120.0  # after so long what a client had counts a third
OUTPUT_COSTS = 2.0  # of an input token (the same paper; a decoded token takes far longer than a prefilled one)
MIN_WEIGHT = 1e-3
LEAST = 1.0  # tokens: who has had next to nothing is no measure
SLACK = 1000  # entries of those who left, in a lane whose head stays


class Waiting(NamedTuple):
    """A job in the queue. `tokens`: what it is expected to cost, see `cost`; times are the server's milliseconds."""

    key: JobKey
    model: str  # canonical
    priority: Priority
    submitted: int
    created_ms: float
    deadline_ms: float
    tokens: float = 1.0
    weight: float = 1.0
    max_running: int = 0


def cost(prompt_tokens: float, output_tokens: float) -> float:
    return prompt_tokens + OUTPUT_COSTS * output_tokens


Lane = tuple[int, str]  # rank, client
Turn = tuple[
    int, int, int
]  # rank, how many tolerances its client is over its share, sequence: the smallest is served first


class PendingQueue:
    def __init__(self) -> None:
        self._jobs: dict[JobKey, tuple[Waiting, int]] = {}  # with the rank it has risen to
        self._lanes: dict[str, dict[Lane, list[tuple[float, int, JobKey]]]] = {}
        self._first: dict[str, tuple[Turn, Waiting] | None] = {}  # of each model, as long as nothing of it changed
        self._had: dict[str, float] = {}  # tokens over weight, by client, in units that grow as the past fades
        self._fades_from = 0.0  # seconds: when such a unit was one token
        self._over: dict[str, int] = {}  # clients that had more than their share, by how many tolerances
        self._waits: defaultdict[str, int] = defaultdict(int)  # jobs, by client
        self._of_model: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._created: defaultdict[str, float] = defaultdict(float)  # sums of created_ms, by model
        self._running: dict[JobKey, tuple[float, float]] = {}  # charged so much over its weight, and when
        self._runs: defaultdict[str, int] = defaultdict(int)  # by client

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, key: JobKey) -> bool:
        return key in self._jobs

    def clear(self) -> None:
        """The jobs; what clients have had so far stays."""
        self._jobs.clear()
        self._lanes.clear()
        self._first.clear()
        self._waits.clear()
        self._of_model.clear()
        self._created.clear()
        self._running.clear()
        self._runs.clear()

    # -- who waits -----------------------------------------------------------------------------------------------------

    def add(self, job: Waiting) -> None:
        """Adding a job again changes nothing but its place."""
        known = self._jobs.get(job.key)
        if known is not None:
            if known[0] == job:
                return
            self.discard(job.key)
        client = job.key.client
        self._waits[client] += 1
        if self._waits[client] == 1:
            self._see_who_is_over()
        self._of_model[job.model][client] += 1
        self._created[job.model] += job.created_ms
        self._put(job, RANK[job.priority])

    def discard(self, key: JobKey) -> None:
        known = self._jobs.pop(key, None)
        if known is None:
            return
        job = known[0]
        self._first.pop(job.model, None)
        self._less(self._waits, key.client)
        self._less(self._of_model[job.model], key.client)
        self._created[job.model] -= job.created_ms
        if not self._of_model[job.model]:
            del self._of_model[job.model]
            del self._created[job.model]

    def waiting(self, model: str) -> dict[str, int]:
        """How many jobs of each client wait for it."""
        return self._of_model.get(model, {})

    def waiting_by_model(self) -> Mapping[str, Mapping[str, int]]:
        return self._of_model

    def waited_ms(self, model: str, now_ms: float) -> float:
        """By all its jobs together."""
        return sum(self.waiting(model).values()) * now_ms - self._created.get(model, 0.0)

    def get(self, key: JobKey) -> Waiting | None:
        known = self._jobs.get(key)
        return known[0] if known else None

    # -- who is served -------------------------------------------------------------------------------------------------

    def serve(self, key: JobKey, now: float, waiting: Waiting | None = None) -> None:
        """The job is bound: it leaves the queue, and its client is charged what it is expected to cost. Again: nothing.

        `now` in seconds. `waiting` is for a job that another router bound, or that was bound before this one started.
        """
        job = waiting or self.get(key)
        self.discard(key)
        if job is None or key in self._running:
            return
        charged = job.tokens / max(job.weight, MIN_WEIGHT)
        self._running[key] = charged, now
        self._runs[key.client] += 1
        self._charge(key.client, charged * self._unit(now))

    def ended(self, key: JobKey, now: float, *, weight: float = 1.0, tokens: float | None = None) -> None:
        """It runs no more. `tokens`: what it really cost; 0: it did not end, and will be charged again; None: not known."""
        bill = self._running.pop(key, None)
        if bill is None:
            return
        charged, at = bill
        self._less(self._runs, key.client)
        if tokens is None:
            self._charge(key.client, 0.0)
            return
        real = tokens / max(weight, MIN_WEIGHT)
        self._charge(key.client, real * self._unit(now) - charged * self._unit(at))

    def rise(self, now_ms: float) -> None:
        """Those who have waited long rise a class. To be called now and then."""
        for lanes in list(self._lanes.values()):
            for (rank, _), lane in list(lanes.items()):
                while rank > 0 and (job := self._head(lane, rank)) is not None:
                    lost = (now_ms - job.created_ms) // RISES_AFTER_MS
                    risen = max(0, RANK[job.priority] - int(lost))
                    if risen >= rank:
                        break
                    heapq.heappop(lane)
                    self._put(job, risen)

    def heads(self) -> Iterator[Waiting]:
        """The next job of each model, best first. Do not change the queue while iterating."""
        found = []
        for model in list(self._lanes):
            first = self._first[model] if model in self._first else self._look(model)
            if first is not None:
                found.append(first)
        found.sort(key=lambda pair: pair[0])
        for _, job in found:
            yield job

    def turns(self, model: str) -> list[Waiting]:
        """All jobs of a model whose client may run more, the next one first; counts through them."""
        return [job for job in self._order(model) if not self._at_limit(job)]

    def order(self) -> list[Waiting]:
        """All of them as `heads` would bring them, one after the other, were shares and limits as they are."""
        return self._order()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _put(self, job: Waiting, rank: int) -> None:
        self._jobs[job.key] = (job, rank)
        lane = self._lanes.setdefault(job.model, {}).setdefault((rank, job.key.client), [])
        heapq.heappush(lane, (job.deadline_ms, job.submitted, job.key))
        self._first.pop(job.model, None)
        if len(lane) > 2 * len(self._jobs) + SLACK:
            lane[:] = sorted(entry for entry in set(lane) if self._stands(entry, rank))

    def _stands(self, entry: tuple[float, int, JobKey], rank: int) -> bool:
        known = self._jobs.get(entry[2])
        return known is not None and known[1] == rank and (known[0].deadline_ms, known[0].submitted) == entry[:2]

    def _head(self, lane: list[tuple[float, int, JobKey]], rank: int) -> Waiting | None:
        while lane:
            if self._stands(lane[0], rank):
                return self._jobs[lane[0][2]][0]
            heapq.heappop(lane)
        return None

    def _order(self, model: str | None = None) -> list[Waiting]:
        """A job's turn does not come before those of its lane that have the earlier deadline."""
        lanes: defaultdict[tuple[str, int, str], list[tuple[float, int, JobKey]]] = defaultdict(list)
        for key, (job, rank) in self._jobs.items():
            if model is None or job.model == model:
                lanes[job.model, rank, key.client].append((job.deadline_ms, job.submitted, key))
        found: list[tuple[Turn, int, Waiting]] = []
        for (_, rank, client), lane in lanes.items():
            latest = 0
            for n, (_, submitted, key) in enumerate(sorted(lane)):
                latest = max(latest, submitted)
                found.append(((rank, self._over.get(client, 0), latest), n, self._jobs[key][0]))
        found.sort(key=lambda entry: entry[:2])
        return [job for _, _, job in found]

    def _look(self, model: str) -> tuple[Turn, Waiting] | None:
        lanes = self._lanes[model]
        best: tuple[Turn, Waiting] | None = None
        for (rank, client), lane in list(lanes.items()):
            job = self._head(lane, rank)
            if job is None:
                del lanes[rank, client]
            elif not self._at_limit(job):
                turn = self._turn(job, rank)
                if best is None or turn < best[0]:
                    best = turn, job
        if lanes:
            self._first[model] = best
        else:
            del self._lanes[model]
        return best

    def _at_limit(self, job: Waiting) -> bool:
        return bool(job.max_running) and self._runs.get(job.key.client, 0) >= job.max_running

    def _turn(self, job: Waiting, rank: int) -> Turn:
        return (rank, self._over.get(job.key.client, 0), job.submitted)

    def _unit(self, now: float) -> float:
        """What a token counts that was used at that moment, beside those of before and after."""
        if now - self._fades_from > 50 * FADES_S:  # before the units grow out of all numbers
            shrunk = math.exp((self._fades_from - now) / FADES_S)
            self._had = {c: had * shrunk for c, had in self._had.items() if had * shrunk > 1e-3}
            self._fades_from = now
        return math.exp((now - self._fades_from) / FADES_S)

    def _charge(self, client: str, units: float) -> None:
        self._had[client] = max(0.0, self._had.get(client, 0.0) + units)
        for model, waiting in self._of_model.items():
            if client in waiting:
                self._first.pop(model, None)  # it may have reached its limit
        self._see_who_is_over()

    def _see_who_is_over(self) -> None:
        active = self._waits.keys() | self._runs.keys()
        had = {client: self._had.get(client, 0.0) for client in active}
        total, others = sum(had.values()), len(active) - 1
        # Against the mean of the others: of two clients one would need three times the other's to be half over their mean.
        over = {
            c: n
            for c in active
            if others and (n := int((had[c] * others / max(total - had[c], LEAST) - 1) / TOLERANCE)) > 0
        }
        if over != self._over:
            self._over = over
            self._first.clear()

    @staticmethod
    def _less(counts: dict[str, int], name: str) -> None:
        if counts.get(name, 0) > 1:
            counts[name] -= 1
        else:
            counts.pop(name, None)
