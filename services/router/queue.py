"""Jobs that wait for a slot, and whose turn it is. Pure.

Priority class first; inside a class the clients that lately had no more than their share (`Shares`); among them who came first;
inside a client the earliest deadline, then the oldest. Who waits long rises a class, so that nothing starves.

One lane per model, class and client, and for each model a heap of the heads of its lanes, so that a look for work costs as many
steps as lanes have changed since, not jobs and not lanes. Entries that do not stand any more are dropped when they come up.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey
from services.router.shares import Clients, Shares

RANK = {Priority.INTERACTIVE: 0, Priority.NORMAL: 1, Priority.BATCH: 2}
RISES_AFTER_MS = 300_000  # waiting for a class of its own
OUTPUT_COSTS = 2.0  # of an input token (the same paper; a decoded token takes far longer than a prefilled one)
MIN_WEIGHT = 1e-3
SLACK = 1000  # entries of those who left, in a lane whose head stays
RISE_AT_ONCE = 1000  # jobs that rise a class in one go: a burst of long ago must not hold everything up
SLACK_HEADS = 64  # the same among heads, besides four for each lane


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
Head = tuple[Turn, JobKey]


class PendingQueue:
    def __init__(self) -> None:
        self._jobs: dict[JobKey, tuple[Waiting, int]] = {}  # with the rank it has risen to
        self._lanes: dict[str, dict[Lane, list[tuple[float, int, JobKey]]]] = {}
        self._first: dict[str, tuple[Turn, Waiting] | None] = {}  # of each model, as long as nothing of it changed
        self._heads: dict[str, list[Head]] = {}  # of lanes, by model: a heap; not all of them still stand
        self._standing: dict[str, dict[Lane, Head]] = {}  # those that do, as of the last look
        self._stale: dict[str, set[Lane]] = {}  # by model: lanes that have changed since its heap was looked at
        self._rises: list[tuple[float, int, JobKey]] = []  # when jobs rise a class: a heap; not all of them still wait
        self._limited: set[str] = set()  # clients that wait, and may run only so many at once
        self._shares = Shares()
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
        self._limited.clear()
        self._lanes.clear()
        self._first.clear()
        self._heads.clear()
        self._standing.clear()
        self._stale.clear()
        self._rises.clear()
        self._waits.clear()
        self._of_model.clear()
        self._created.clear()
        self._shares.clear()
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
            self._move(self._shares.waits(client))
        self._of_model[job.model][client] += 1
        self._created[job.model] += job.created_ms
        if job.max_running:
            self._limited.add(client)
        self._put(job, RANK[job.priority])

    def discard(self, key: JobKey) -> None:
        known = self._jobs.pop(key, None)
        if known is None:
            return
        job = known[0]
        if not self._jobs:
            self._rises.clear()
        self._touch(job.model, (known[1], key.client))
        self._less(self._waits, key.client)
        self._less(self._of_model[job.model], key.client)
        self._created[job.model] -= job.created_ms
        if key.client not in self._waits:
            self._limited.discard(key.client)
            if key.client not in self._runs:
                self._shares.leaves(key.client)
        if not self._of_model[job.model]:
            for table in (
                self._of_model,
                self._created,
                self._lanes,
                self._heads,
                self._standing,
                self._stale,
                self._first,
            ):
                table.pop(job.model, None)

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
        self._shares.runs(key.client)
        self._charge(key.client, charged * self._shares.unit(now))

    def ended(self, key: JobKey, now: float, *, weight: float = 1.0, tokens: float | None = None) -> None:
        """It runs no more. `tokens`: what it really cost; 0: it did not end, and will be charged again; None: not known."""
        bill = self._running.pop(key, None)
        if bill is None:
            return
        charged, at = bill
        self._less(self._runs, key.client)
        if key.client not in self._runs and key.client not in self._waits:
            self._shares.leaves(key.client)
        if tokens is None:
            self._charge(key.client, 0.0)
            return
        real = tokens / max(weight, MIN_WEIGHT)
        self._charge(key.client, real * self._shares.unit(now) - charged * self._shares.unit(at))

    def rise(self, now_ms: float) -> None:
        """Those who have waited long rise a class, wherever in their lane they are: who comes before them by an earlier deadline
        may be young. To be called now and then; no more than `RISE_AT_ONCE` at a time."""
        for _ in range(RISE_AT_ONCE):
            if not self._rises or self._rises[0][0] > now_ms:
                return
            key = heapq.heappop(self._rises)[2]
            known = self._jobs.get(key)
            if known is not None and (rank := _risen(known[0], now_ms)) < known[1]:
                self._touch(known[0].model, (known[1], key.client))
                self._put(known[0], rank)

    def heads(self, models: Iterable[str] | None = None) -> Iterator[Waiting]:
        """The next job of each model that waits, or of these of them, best first. Do not change the queue while iterating."""
        found = []
        for model in list(self._lanes) if models is None else models:
            first = self._first_of(model)
            if first is not None:
                found.append(first)
        found.sort(key=lambda pair: pair[0])
        for _, job in found:
            yield job

    def turns(self, model: str, most: float = math.inf) -> list[Waiting]:
        """The jobs of a model that would be served next, one after the other, were no client charged for them."""
        if model not in self._lanes or self._first_of(model) is None:
            return []
        heap, lanes, standing = self._heads[model].copy(), self._lanes[model], self._standing[model]
        found: list[Waiting] = []
        walks: dict[Lane, Iterator[Waiting]] = {}  # what comes after a lane's head
        following: dict[Lane, JobKey | None] = {}
        seen: set[JobKey] = set()
        while heap and len(found) < most:
            turn, key = head = heapq.heappop(heap)
            lane = (turn[0], key.client)
            if key in seen or (key != following[lane] if lane in following else standing.get(lane) != head):
                continue
            seen.add(key)
            job = self._jobs[key][0]
            if not self._at_limit(job):
                found.append(job)
            if lane not in walks:
                walks[lane] = self._walk(lanes[lane], turn[0])
            after = next((job for job in walks[lane] if job.key not in seen), None)
            following[lane] = after.key if after else None
            if after is not None:
                heapq.heappush(heap, (self._turn(after, turn[0]), after.key))
        return found

    def order(self) -> list[Waiting]:
        """All of them as `heads` would bring them, one after the other, were shares and limits as they are.

        A job's turn does not come before those of its lane that have the earlier deadline. Counts through them.
        """
        lanes: defaultdict[tuple[str, int, str], list[tuple[float, int, JobKey, Waiting]]] = defaultdict(list)
        for key, (job, rank) in self._jobs.items():
            lanes[job.model, rank, key.client].append((job.deadline_ms, job.submitted, key, job))
        found: list[tuple[int, int, int, int, Waiting]] = []
        for (_, rank, client), lane in lanes.items():
            lane.sort()
            over, latest = self._shares.over.get(client, 0), 0
            for n, (_, submitted, _, job) in enumerate(lane):
                if submitted > latest:
                    latest = submitted
                found.append((rank, over, latest, n, job))
        found.sort()
        return [entry[4] for entry in found]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _put(self, job: Waiting, rank: int) -> None:
        self._jobs[job.key] = (job, rank)
        lane = self._lanes.setdefault(job.model, {}).setdefault((rank, job.key.client), [])
        heapq.heappush(lane, (job.deadline_ms, job.submitted, job.key))
        if rank > 0:
            self._will_rise(job, rank)
        self._touch(job.model, (rank, job.key.client))
        if len(lane) > 2 * len(self._jobs) + SLACK:
            lane[:] = sorted(entry for entry in set(lane) if self._stands(entry, rank))

    def _will_rise(self, job: Waiting, rank: int) -> None:
        if len(self._rises) > 2 * len(self._jobs) + SLACK:
            waiting = ((one, at) for one, at in self._jobs.values() if at > 0 and one.key != job.key)
            self._rises = [_next_rise(one, at) for one, at in waiting]
            heapq.heapify(self._rises)
        heapq.heappush(self._rises, _next_rise(job, rank))

    def _stands(self, entry: tuple[float, int, JobKey], rank: int) -> bool:
        deadline_ms, submitted, key = entry
        if (known := self._jobs.get(key)) is None or known[1] != rank:
            return False
        return known[0].submitted == submitted and known[0].deadline_ms == deadline_ms

    def _head(self, lane: list[tuple[float, int, JobKey]], rank: int) -> Waiting | None:
        while lane:
            deadline_ms, submitted, key = lane[0]
            known = self._jobs.get(key)
            if known is not None and known[1] == rank:
                job = known[0]
                if job.submitted == submitted and job.deadline_ms == deadline_ms:
                    return job
            heapq.heappop(lane)
        return None

    def _walk(self, lane: list[tuple[float, int, JobKey]], rank: int) -> Iterator[Waiting]:
        """All that stand in a lane, in order, without taking anything out of its heap."""
        frontier = [(lane[0], 0)] if lane else []
        while frontier:
            entry, at = heapq.heappop(frontier)
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(lane):
                    heapq.heappush(frontier, (lane[child], child))
            if self._stands(entry, rank):
                yield self._jobs[entry[2]][0]

    def _touch(self, model: str, *lanes: Lane) -> None:
        self._first.pop(model, None)
        self._stale.setdefault(model, set()).update(lanes)

    def _first_of(self, model: str) -> tuple[Turn, Waiting] | None:
        return self._first[model] if model in self._first else self._look(model)

    def _look(self, model: str) -> tuple[Turn, Waiting] | None:
        lanes = self._lanes[model]
        heap, standing = self._heads.setdefault(model, []), self._standing.setdefault(model, {})
        changed: Iterable[Lane] = self._stale.pop(model, ())
        if len(heap) > 4 * len(lanes) + SLACK_HEADS:
            heap.clear()
            standing.clear()
            changed = list(lanes)
        over, jobs = self._shares.over, self._jobs
        for each in changed:
            lane = lanes.get(each)
            job = None if lane is None else self._head(lane, each[0])
            if job is None:
                lanes.pop(each, None)
            if job is None or self._at_limit(job):
                standing.pop(each, None)
                continue
            head = ((each[0], over.get(each[1], 0), job.submitted), job.key)
            if standing.get(each) != head:
                standing[each] = head
                heapq.heappush(heap, head)
        while heap and standing.get((heap[0][0][0], heap[0][1].client)) != heap[0]:
            heapq.heappop(heap)
        best = self._first[model] = (heap[0][0], jobs[heap[0][1]][0]) if heap else None
        return best

    def _at_limit(self, job: Waiting) -> bool:
        return bool(job.max_running) and self._runs.get(job.key.client, 0) >= job.max_running

    def _turn(self, job: Waiting, rank: int) -> Turn:
        return (rank, self._shares.over.get(job.key.client, 0), job.submitted)

    def _charge(self, client: str, units: float) -> None:
        if client in self._limited:  # it may have reached its limit, or be below it again
            self._touch_all(client)
        self._move(self._shares.charge(client, units))

    def _move(self, clients: Clients) -> None:
        for client in clients:
            self._touch_all(client)

    def _touch_all(self, client: str) -> None:
        for model, waiting in self._of_model.items():
            if client in waiting:
                self._touch(model, *((rank, client) for rank in RANK.values()))

    @staticmethod
    def _less(counts: dict[str, int], name: str) -> None:
        if counts.get(name, 0) > 1:
            counts[name] -= 1
        else:
            counts.pop(name, None)


def _risen(job: Waiting, now_ms: float) -> int:
    return max(0, RANK[job.priority] - int((now_ms - job.created_ms) // RISES_AFTER_MS))


def _next_rise(job: Waiting, rank: int) -> tuple[float, int, JobKey]:
    return job.created_ms + (RANK[job.priority] - rank + 1) * RISES_AFTER_MS, job.submitted, job.key
