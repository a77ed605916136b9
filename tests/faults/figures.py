"""How long it took to heal after each fault. Pure: records in, seconds out."""

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tests.faults.records import Record


class Heal(NamedTuple):
    """`fleet_s`: until a job that was submitted after the fault began had succeeded. `part_s`: until the struck gateway
    answered, or the struck node had finished a job that was submitted after the fault began; None for other roles."""

    role: str
    kind: str
    fleet_s: float | None
    part_s: float | None


class Row(NamedTuple):
    role: str
    kind: str
    count: int
    fleet_p50: float | None
    fleet_p99: float | None
    part_p50: float | None
    part_p99: float | None


def heals(records: Sequence[Record]) -> list[Heal]:
    submitted: dict[str, float] = {}
    answered: dict[str, list[float]] = defaultdict(list)  # by gateway: when a good answer was asked for
    ended: dict[str, float] = {}
    node_of: dict[str, str] = {}
    for record in records:
        match record["what"]:
            case "call":
                if record["op"] in ("submit", "chat") and record["status"] in (200, 202):
                    submitted.setdefault(record["job"], record["sent"])
                if 200 <= record["status"] < 300:
                    answered[record["gateway"]].append(record["t"])
            case "ended":
                if record["state"] == "succeeded":
                    ended.setdefault(record["job"], record["t"])
            case "audit":
                if record["status"] == 200 and record["view"].get("node"):
                    node_of[record["job"]] = record["view"]["node"]
    everywhere = _First((submitted[job], t) for job, t in ended.items() if job in submitted)
    by_node: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for job, t in ended.items():
        if job in submitted and job in node_of:
            by_node[node_of[job]].append((submitted[job], t))
    nodes = {node: _First(pairs) for node, pairs in by_node.items()}
    found = []
    for fault in records:
        if fault["what"] != "fault" or fault["phase"] != "begun":
            continue
        t, part = fault["t"], None
        if fault["role"] == "gateway":
            times = answered[fault["target"]]
            at = bisect.bisect_right(times, t)
            part = times[at] - t if at < len(times) else None
        elif fault["role"] in ("worker", "sim"):
            first = nodes.get(fault["target"].partition("-")[2])
            part = first.after(t) if first else None
        found.append(Heal(fault["role"], fault["kind"], everywhere.after(t), part))
    return found


class _First:
    """The earliest end among what began after a moment."""

    def __init__(self, pairs: Iterable[tuple[float, float]]) -> None:
        ordered = sorted(pairs)
        self._starts = [start for start, _ in ordered]
        self._ends = [end for _, end in ordered]
        for n in range(len(self._ends) - 2, -1, -1):
            self._ends[n] = min(self._ends[n], self._ends[n + 1])

    def after(self, t: float) -> float | None:
        at = bisect.bisect_right(self._starts, t)
        return self._ends[at] - t if at < len(self._starts) else None


def table(found: Iterable[Heal]) -> list[Row]:
    groups: dict[tuple[str, str], list[Heal]] = defaultdict(list)
    for heal in found:
        groups[heal.role, heal.kind].append(heal)
    return [
        Row(
            role, kind, len(group),
            *_percentiles([h.fleet_s for h in group]), *_percentiles([h.part_s for h in group]),
        )
        for (role, kind), group in sorted(groups.items())
    ]  # fmt: skip


def _percentiles(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = sorted(value for value in values if value is not None)
    if not known:
        return None, None
    return known[(len(known) - 1) // 2], known[min(len(known) - 1, -(-len(known) * 99 // 100) - 1)]
