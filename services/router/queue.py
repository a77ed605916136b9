"""Jobs that wait for a slot, in the order in which they are served: priority class, then age. Pure.

One heap per model, so that a look for work costs as many steps as there are models, not jobs. Entries of jobs that have
left are dropped when they come up.
"""

import heapq
from collections.abc import Iterator

from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey

RANK = {Priority.INTERACTIVE: 0, Priority.NORMAL: 1, Priority.BATCH: 2}

Place = tuple[int, int]  # rank of the priority, sequence of `new`: the smaller is served first


class PendingQueue:
    def __init__(self) -> None:
        self._places: dict[JobKey, tuple[Place, str]] = {}
        self._heaps: dict[str, list[tuple[Place, JobKey]]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: JobKey) -> bool:
        return key in self._places

    def clear(self) -> None:
        self._places.clear()
        self._heaps.clear()

    def add(self, key: JobKey, model: str, priority: Priority, submitted: int) -> None:
        """Adding a job again changes nothing but its place."""
        place = (RANK[priority], submitted)
        if self._places.get(key) != (place, model):
            self._places[key] = (place, model)
            heap = self._heaps.setdefault(model, [])
            heapq.heappush(heap, (place, key))
            if (
                len(heap) > 2 * len(self._places) + 1000
            ):  # behind a head that stays, entries of those who left would pile up
                heap[:] = sorted({(at, who) for at, who in heap if self._places.get(who) == (at, model)})

    def discard(self, key: JobKey) -> None:
        self._places.pop(key, None)

    def heads(self) -> Iterator[tuple[JobKey, str]]:
        """The next job of each model, best first. Do not change the queue while iterating."""
        heads = []
        for model in list(self._heaps):
            head = self._head(model)
            if head is not None:
                heads.append((*head, model))
        for _, key, model in sorted(heads):
            yield key, model

    def position(self, key: JobKey) -> int | None:
        """1 for the job that is served first; None if it does not wait. Counts through the queue."""
        mine = self._places.get(key)
        return None if mine is None else 1 + sum(place < mine[0] for place, _ in self._places.values())

    def _head(self, model: str) -> tuple[Place, JobKey] | None:
        heap = self._heaps[model]
        while heap:
            place, key = heap[0]
            if self._places.get(key) == (place, model):
                return place, key
            heapq.heappop(heap)
        del self._heaps[model]
        return None
