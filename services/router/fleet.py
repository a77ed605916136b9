"""What the router knows of the nodes: heartbeats, liveness, and which runs hold their slots. Pure: time is a parameter.

A slot is free on the worker's word, not on `done`: a run that was ordered holds its slot until the worker frees it, its
heartbeat no longer lists it (one that is newer than the worker's answer to `run`), or that boot of the worker is gone.
"""

import itertools
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from libs.common.contracts.nodes import DEAD_S, SUSPECT_S, DiskModel, Heartbeat, Phase, Running, canonical_model
from libs.common.contracts.subjects import JobKey

NO_RESPONDERS_GONE = (
    3  # pings in a row that nobody heard: the process is not there (3 ms after a kill -9 there is nobody)
)
RunKey = tuple[JobKey, int]

PRELOAD_RETRY_S = 120.0
FAILED_JOBS = 3  # different jobs in a row; one job alone may be poison
SET_ASIDE_S, MAX_SET_ASIDE_S = 10.0, 300.0
_stamps = itertools.count(1)
MAX_FAILING = FAILED_JOBS + 5  # by then it is left alone for as long as ever; more need not be remembered


class Liveness(StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"  # no new work
    DEAD = "dead"  # its jobs go elsewhere


@dataclass(slots=True)
class Hold:
    """A run that the router has ordered. `confirmed` is the worker's change count when it said that it runs.

    The times are predictions, monotonic seconds: when its model is in memory, and when its slot is free again.
    """

    model: str
    confirmed: int | None = None
    ready_at: float = 0.0
    ends_at: float = 0.0
    evict: tuple[str, ...] = ()  # leave memory for it


class Preload(NamedTuple):
    """A model that loads without a job: by when it should be in memory, and what leaves for it."""

    ready_at: float
    evict: tuple[str, ...] = ()


@dataclass(slots=True)
class NodeView:
    """One boot of a node. `holds` and `freed` change only through the methods here, because what follows is kept ready."""

    name: str
    beat: Heartbeat
    heard_at: float  # monotonic seconds; of the record alone, without a live heartbeat: never
    gone: bool = False
    unanswered_pings: int = 0
    holds: dict[RunKey, Hold] = field(default_factory=dict)
    freed: dict[RunKey, int] = field(default_factory=dict)  # freed at that change count; older heartbeats still list it
    failing: set[JobKey] = field(default_factory=set)  # jobs that failed here since the last success
    set_aside_until: float = 0.0
    last_bound_at: float = 0.0
    failed_preloads: dict[str, float] = field(default_factory=dict)  # when, by model
    preloads: dict[str, Preload] = field(default_factory=dict)  # ordered without a job, by model; not in memory yet

    stamp: int = 0  # another one after each change that matters to a decision; no two nodes ever have the same

    # Derived on each change, because every decision asks.
    _models: tuple[DiskModel, ...] | None = None
    disk: frozenset[str] = frozenset()
    sizes: dict[str, int] = field(default_factory=dict)  # of the models on disk, bytes
    loaded: frozenset[str] = frozenset()
    loaded_at: dict[str, float] = field(default_factory=dict)  # when each was first heard to be in memory
    suspect: frozenset[str] = frozenset()  # fell silent, as the worker says
    listed: dict[RunKey, Running] = field(default_factory=dict)  # what the newest heartbeat names
    runs: dict[RunKey, str] = field(default_factory=dict)  # all that takes a slot, ordered or listed, with its model
    loading: frozenset[str] = frozenset()  # sent here cold, not in memory yet: Ollama loads one after the other (§3.1)
    free_slots: int = 0
    resident: frozenset[str] = frozenset()  # in memory, and not about to leave it for what is loading

    def __post_init__(self) -> None:
        self._read_beat()

    def take(self, beat: Heartbeat, now: float) -> None:
        """A newer heartbeat of this boot, heard live."""
        self.heard_at, self.gone, self.unanswered_pings = now, False, 0
        self.beat = beat
        self._read_beat()

    def failed(self, job: JobKey, now: float) -> None:
        """The node failed this job, through no fault of the job that is known. After several it is left alone for a while:
        longer each time, until one succeeds."""
        if len(self.failing) < MAX_FAILING:
            self.failing.add(job)
        beyond = len(self.failing) - FAILED_JOBS
        if beyond >= 0:
            self.set_aside_until = now + min(SET_ASIDE_S * 2**beyond, MAX_SET_ASIDE_S)
        self.stamp = next(_stamps)

    def succeeded(self) -> None:
        self.failing.clear()
        if self.set_aside_until:
            self.set_aside_until = 0.0
            self.stamp = next(_stamps)

    def reserve(self, key: RunKey, hold: Hold) -> None:
        """This run has been, or is about to be, ordered here."""
        if key not in self.freed:
            self.holds.setdefault(key, hold)
            self._count()

    def confirm(self, key: RunKey, model: str, changes: int) -> None:
        """The worker answered, at that change count, that it runs. It may have ended since: answers overtake each other."""
        if self.freed.get(key, -1) >= changes or (self.beat.changes >= changes and key not in self.listed):
            self.holds.pop(key, None)
        else:
            self.holds.setdefault(key, Hold(model)).confirmed = changes
        self._count()

    def doubt(self, key: RunKey) -> None:
        """The run is not bound here any more, and its worker may never say a word about it: the next heartbeat decides."""
        hold = self.holds.get(key)
        if hold is not None and hold.confirmed is None:
            hold.confirmed = self.beat.changes

    def release(self, key: RunKey, changes: int) -> None:
        """The worker said, at that change count, that the run holds its slot no longer."""
        self.holds.pop(key, None)
        if changes > self.beat.changes:
            self.freed[key] = changes
        self._count()

    def preload(self, model: str, order: Preload) -> None:
        self.preloads[model] = order
        self._count()

    def preload_ended(self, model: str, failed_at: float | None = None) -> None:
        """It is in memory, as the heartbeat shows, or has failed (monotonic seconds)."""
        if failed_at is not None:
            self.failed_preloads[model] = failed_at
        if self.preloads.pop(model, None) is not None:
            self._count()

    def preload_failed(self, model: str, now: float) -> bool:
        """Lately, so that it is not tried again at once."""
        return now - self.failed_preloads.get(model, -PRELOAD_RETRY_S) < PRELOAD_RETRY_S

    def withdraw(self, key: RunKey) -> None:
        """It was never ordered: the binding could not be written."""
        self.holds.pop(key, None)
        self._count()

    def _read_beat(self) -> None:
        beat = self.beat
        if self._models is not beat.models:  # the same for a long time
            self._models = beat.models
            self.sizes = {canonical_model(model.name): model.size for model in beat.models}
            self.disk = frozenset(self.sizes)
        self.loaded = frozenset(canonical_model(model.name) for model in beat.loaded)
        self.loaded_at = {model: self.loaded_at.get(model, self.heard_at) for model in self.loaded}
        self.suspect = frozenset(canonical_model(model) for model in beat.suspect_models)
        self.listed = {(JobKey(run.client, run.job), run.epoch): run for run in beat.running}
        for key, hold in list(self.holds.items()):
            if key in self.listed:
                hold.confirmed = beat.changes
            elif hold.confirmed is not None and beat.changes >= hold.confirmed:
                del self.holds[key]
        self.freed = {key: changes for key, changes in self.freed.items() if changes > beat.changes}
        self._count()

    def bury(self) -> None:
        """It is dead until it is heard."""
        self.gone = True
        self.stamp = next(_stamps)

    def _count(self) -> None:
        self.stamp = next(_stamps)
        self.runs = {key: hold.model for key, hold in self.holds.items()}
        decoding = set()
        for key, run in self.listed.items():
            if key not in self.freed:
                self.runs.setdefault(key, canonical_model(run.model) if run.model else "")
            if run.phase in (Phase.DECODING, Phase.STOPPING):
                decoding.add(key)
        self.free_slots = self.beat.slots - len(self.runs)
        self.loading = frozenset(
            m for key, m in self.runs.items() if m and m not in self.loaded and key not in decoding
        )
        self.resident = self.loaded
        on_way = self.preloads.keys() - self.loaded
        if self.loading or on_way:
            leaving = {m for hold in self.holds.values() if hold.model in self.loading for m in hold.evict}
            leaving.update(m for model in on_way for m in self.preloads[model].evict)
            self.loading |= on_way
            self.resident = self.loaded - leaving

    def frees_at(self, now: float, otherwise: float) -> float:
        """When the first of its slots is free, as predicted; of a run that nothing is known of, after `otherwise` seconds."""
        if self.free_slots > 0:
            return now
        ends = [self.holds[key].ends_at if key in self.holds else 0.0 for key in self.runs]
        return min((max(now, end) if end > 0 else now + otherwise for end in ends), default=now)

    def ready_at(self, model: str, now: float) -> float:
        """When a model that is loading here will be in memory, as predicted."""
        ready = max((hold.ready_at for hold in self.holds.values() if hold.model == model), default=now)
        return max(ready, self.preloads[model].ready_at) if model in self.preloads else ready

    def busy_with(self, model: str, now: float, otherwise: float) -> float:
        """When the last run of that model here ends, as predicted; now when none runs."""
        last = now
        for key, runs in self.runs.items():
            if runs == model:
                hold = self.holds.get(key)
                last = max(last, hold.ends_at if hold and hold.ends_at > 0 else now + otherwise)
        return last

    def liveness(self, now: float, connected_at: float) -> Liveness:
        """`connected_at`: since when the router itself hears anything; clocks never run before it."""
        if self.gone:
            return Liveness.DEAD
        silent = now - max(self.heard_at, connected_at)
        if silent >= DEAD_S:
            return Liveness.DEAD
        return Liveness.SUSPECT if silent >= SUSPECT_S or self.heard_at <= 0 else Liveness.ALIVE


class Fleet:
    """Nodes by name, each with its newest boot."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeView] = {}

    def hear(self, beat: Heartbeat, now: float, *, live: bool) -> bool:
        """Take one heartbeat, live from its subject or (not live) from the bucket; True if it is news.

        Repeated, older and late ones change nothing. A new boot id means that everything of the old boot is gone.
        """
        known = self.nodes.get(beat.node)
        if known is None or known.beat.boot != beat.boot:
            if known is not None and known.beat.boot > beat.boot and known.heard_at > 0:
                # A straggler of an older boot. But boot ids begin with their machine's clock, which may have been set
                # back: one that has died does not shut its node out for ever.
                died = known.gone or now - known.heard_at >= DEAD_S
                if not died:
                    return False
            self.nodes[beat.node] = NodeView(beat.node, beat, heard_at=now if live else 0.0)
            return True
        if beat.beat < known.beat.beat or (beat.beat == known.beat.beat and not live):
            return False
        if live:
            known.take(beat, now)
        return live

    def alive_boot(self, node: str, boot: str, now: float, connected_at: float) -> bool:
        """May (node, boot) still be running what it was given?"""
        view = self.nodes.get(node)
        if view is None:
            return now - connected_at < DEAD_S  # just started: it has not had the time to speak
        if view.beat.boot != boot:
            return False
        return view.liveness(now, connected_at) is not Liveness.DEAD

    def bury(self, now: float, connected_at: float) -> None:
        """Whoever is dead by silence stays so until it is heard, also when a reconnect of ours restarts the clocks."""
        for view in self.nodes.values():
            if not view.gone and view.liveness(now, connected_at) is Liveness.DEAD:
                view.bury()

    def ping_result(self, node: str, boot: str, *, answered: bool, nobody: bool) -> bool:
        """Fold one ping; True when it just showed that the worker's process is gone."""
        view = self.nodes.get(node)
        if view is None or view.beat.boot != boot:
            return False
        view.unanswered_pings = view.unanswered_pings + 1 if nobody else 0
        if view.unanswered_pings >= NO_RESPONDERS_GONE and not view.gone:
            view.bury()
            return True
        return False
