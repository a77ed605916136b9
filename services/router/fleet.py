"""What the router knows of the nodes: heartbeats, liveness, and which runs hold their slots. Pure: time is a parameter.

A slot is free on the worker's word, not on `done`: a run that was ordered holds its slot until the worker frees it, its
heartbeat no longer lists it (one that is newer than the worker's answer to `run`), or that boot of the worker is gone.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from libs.common.contracts.nodes import DEAD_S, SUSPECT_S, Heartbeat, Phase, canonical_model
from libs.common.contracts.subjects import JobKey

NO_RESPONDERS_GONE = (
    3  # pings in a row that nobody heard: the process is not there (3 ms after a kill -9 there is nobody)
)
RunKey = tuple[JobKey, int]


class Liveness(StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"  # no new work
    DEAD = "dead"  # its jobs go elsewhere


@dataclass(slots=True)
class Hold:
    """A run that the router has ordered. `confirmed` is the worker's change count when it said that it runs."""

    model: str
    confirmed: int | None = None


@dataclass(slots=True)
class NodeView:
    name: str
    beat: Heartbeat
    heard_at: float  # monotonic seconds; of the record alone, without a live heartbeat: never
    gone: bool = False
    unanswered_pings: int = 0
    holds: dict[RunKey, Hold] = field(default_factory=dict)
    freed: dict[RunKey, int] = field(default_factory=dict)  # freed at that change count; older heartbeats still list it
    set_aside_until: float = 0.0
    last_bound_at: float = 0.0

    # Derived once per heartbeat, because every decision asks.
    disk: frozenset[str] = frozenset()
    loaded: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._derive()

    def _derive(self) -> None:
        self.disk = frozenset(canonical_model(model.name) for model in self.beat.models)
        self.loaded = frozenset(canonical_model(model.name) for model in self.beat.loaded)

    def take(self, beat: Heartbeat, now: float) -> None:
        self.heard_at, self.gone, self.unanswered_pings = now, False, 0
        self.beat = beat
        self._derive()
        listed = {(JobKey(run.client, run.job), run.epoch) for run in beat.running}
        for key, hold in list(self.holds.items()):
            if key not in listed and hold.confirmed is not None and beat.changes >= hold.confirmed:
                del self.holds[key]
        self.freed = {key: changes for key, changes in self.freed.items() if changes > beat.changes}

    def release(self, key: RunKey, changes: int) -> None:
        """The worker said, at that change count, that the run holds its slot no longer."""
        self.holds.pop(key, None)
        if changes > self.beat.changes:
            self.freed[key] = changes

    def lists(self, key: RunKey) -> bool:
        """Does the newest heartbeat name this run?"""
        return any(
            run.client == key[0].client and run.job == key[0].job and run.epoch == key[1] for run in self.beat.running
        )

    def liveness(self, now: float, connected_at: float) -> Liveness:
        """`connected_at`: since when the router itself hears anything; clocks never run before it."""
        if self.gone:
            return Liveness.DEAD
        silent = now - max(self.heard_at, connected_at)
        if silent >= DEAD_S:
            return Liveness.DEAD
        return Liveness.SUSPECT if silent >= SUSPECT_S or self.heard_at <= 0 else Liveness.ALIVE

    @property
    def runs(self) -> dict[RunKey, str]:
        """Everything that takes a slot, ordered by us or listed by the node, with its model."""
        taken = {key: hold.model for key, hold in self.holds.items()}
        for run in self.beat.running:
            key = (JobKey(run.client, run.job), run.epoch)
            if key not in self.freed:
                taken.setdefault(key, canonical_model(run.model) if run.model else "")
        return taken

    @property
    def loading(self) -> frozenset[str]:
        """Models that were sent here cold and are not in memory yet: Ollama loads one after the other (ollama-facts §3.1)."""
        decoding = {
            (JobKey(run.client, run.job), run.epoch)
            for run in self.beat.running
            if run.phase in (Phase.DECODING, Phase.STOPPING)
        }
        return frozenset(m for key, m in self.runs.items() if m and m not in self.loaded and key not in decoding)


class Fleet:
    """Nodes by name. `boots_gone` collects (node, boot) pairs whose runs are lost, for the loop to act on."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeView] = {}

    def hear(self, beat: Heartbeat, now: float, *, live: bool) -> bool:
        """Take one heartbeat, live from its subject or (not live) from the bucket; True if it is news.

        Repeated, older and late ones change nothing. A new boot id means that everything of the old boot is gone.
        """
        known = self.nodes.get(beat.node)
        if known is None or known.beat.boot != beat.boot:
            if known is not None and known.beat.boot > beat.boot and known.heard_at > 0:
                return False  # a straggler of an older boot
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

    def ping_result(self, node: str, boot: str, *, answered: bool, nobody: bool) -> bool:
        """Fold one ping; True when it just showed that the worker's process is gone."""
        view = self.nodes.get(node)
        if view is None or view.beat.boot != boot:
            return False
        view.unanswered_pings = view.unanswered_pings + 1 if nobody else 0
        if view.unanswered_pings >= NO_RESPONDERS_GONE and not view.gone:
            view.gone = True
            return True
        return False
