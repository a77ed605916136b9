"""What gateways know of the fleet: which models exist, for `/v1/models` and 404s, and the view of `/nodes`."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from libs.common.bus.buckets import Bucket, value_of
from libs.common.bus.connection import Bus
from libs.common.bus.follower import Follower
from libs.common.bus.stored import Stored
from libs.common.contracts.clients import Principal
from libs.common.contracts.codec import Malformed
from libs.common.contracts.nodes import (
    DEAD_S,
    RECORD_TTL_S,
    DiskModel,
    Heartbeat,
    canonical_model,
    decode_heartbeat,
)
from libs.common.contracts.streams import NODES, key_subject
from services.gateway.fleet_models import state_of

log = structlog.get_logger()


YOUNG_BEATS = 15  # half a minute; an Ollama that is away for longer is not waited for


def silent_about_models(beat: Heartbeat) -> bool:
    return not beat.models and not beat.reachable


class FleetView:
    """Folded from the bucket of heartbeats. A node that left is remembered as long as its record would stay."""

    def __init__(self, bus: Bus) -> None:
        self._bucket = Bucket(bus, NODES)
        self._beats: dict[str, tuple[Heartbeat, float, float]] = {}  # beat, server's time, when we heard it
        self.follower = Follower(
            bus, self._bucket.stream, [key_subject(NODES, "*")], self._fold, on_reset=self._beats.clear
        )

    def _fold(self, stored: Stored) -> None:
        node = self._bucket.key_of(stored.subject)
        value = value_of(stored)
        if value is None:
            self._beats.pop(node, None)
            return
        try:
            # A record that was there before us may be old: its own time says how old it is.
            age = 0.0 if self.follower.caught_up.is_set() else max(0.0, time.time() - stored.at_ms / 1000)
            beat = decode_heartbeat(value)
            if (before := self._beats.get(node)) is not None and silent_about_models(beat):
                # A worker that has just started, or whose Ollama is away, does not know: what it had is the best guess.
                beat = msgspec.structs.replace(beat, models=before[0].models)
            self._beats[node] = (beat, stored.at_ms / 1000, time.monotonic() - age)
        except Malformed as error:
            log.warning("heartbeat.malformed", node=node, error=str(error))

    def current(self) -> list[tuple[Heartbeat, float]]:
        """Every node's last heartbeat, and how many seconds ago it was."""
        now = time.monotonic()
        # Records expire without a word, so whoever looks forgets them, too: names of nodes may come and go for ever.
        for node in [node for node, (_, _, heard_at) in self._beats.items() if now - heard_at >= RECORD_TTL_S]:
            del self._beats[node]
        return [(beat, now - heard_at) for _, (beat, _, heard_at) in sorted(self._beats.items())]

    @property
    def is_complete(self) -> bool:
        """Has every node that has just started said which models it has? If not, an unknown model may exist all the same."""
        return not any(
            silent_about_models(beat) and beat.beat <= YOUNG_BEATS and silent < DEAD_S
            for beat, silent in self.current()
        )

    def models(self) -> dict[str, DiskModel]:
        """The union of what nodes hold, by canonical name; of nodes that are away for a moment, too."""
        found: dict[str, DiskModel] = {}
        for beat, _ in self.current():
            for model in beat.models:
                found.setdefault(canonical_model(model.name), model)
        return found

    def models_for(self, principal: Principal) -> dict[str, DiskModel]:
        """Those that its rules allow: for it, others do not exist."""
        found = self.models()
        if not principal.models:
            return found
        return {name: model for name, model in found.items() if principal.allows(name)}

    def own_prompt(self, model: str) -> int:
        """The most bytes that its Modelfile puts before every prompt, on any node."""
        wanted = canonical_model(model)
        found = (each for beat, _ in self.current() for each in beat.models if canonical_model(each.name) == wanted)
        return max((each.prompt_bytes for each in found), default=0)

    def working(self, node: str, client: str, job: str, epoch: int) -> bool:
        """Does the node's last heartbeat list this run?"""
        entry = self._beats.get(node)
        return entry is not None and any(
            (run.client, run.job, run.epoch) == (client, job, epoch) for run in entry[0].running
        )

    def has_loaded(self, node: str, model: str) -> bool:
        """By the node's last heartbeat."""
        entry, wanted = self._beats.get(node), canonical_model(model)
        return entry is not None and any(canonical_model(loaded.name) == wanted for loaded in entry[0].loaded)

    def node(self, name: str) -> tuple[Heartbeat, float] | None:
        return next((seen for seen in self.current() if seen[0].node == name), None)

    def nodes(self, draining: Callable[[str], bool] = lambda node: False) -> list[dict[str, Any]]:
        """`draining`: did an operator say so?"""
        return [self._describe(beat, silent, draining(beat.node)) for beat, silent in self.current()]

    def _describe(self, beat: Heartbeat, silent: float, told_to_drain: bool) -> dict[str, Any]:
        draining = told_to_drain or beat.draining
        return {
            "name": beat.node,
            "state": state_of(beat, silent, draining=draining),
            "draining": draining,
            "problem": beat.problem or None,
            "last_seen_s": round(silent, 1),
            "slots": beat.slots,
            "running": len(beat.running),
            "vram": beat.vram,
            "models": [
                {"name": m.name, "size": m.size, "digest": m.digest, "capabilities": list(m.capabilities)}
                for m in beat.models
            ],
            "loaded": [
                {"name": m.name, "size": m.size, "size_vram": m.size_vram, "context_length": m.context_length}
                for m in beat.loaded
            ],
            "ollama_version": beat.ollama_version,
            "arriero_version": beat.arriero_version,
            "boot": beat.boot,
        }
