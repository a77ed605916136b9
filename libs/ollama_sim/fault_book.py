"""The node's present faults; the one place where their histories change."""

from libs.ollama_sim.draws import Draws
from libs.ollama_sim.faults import ArmedFault, Fault, Occasion, Phase, fire


class FaultBook:
    def __init__(self, faults: tuple[Fault, ...], seed: int) -> None:
        self._draws = Draws(seed)
        self.armed: tuple[ArmedFault, ...] = ()
        self.replace(faults)

    def replace(self, faults: tuple[Fault, ...]) -> None:
        """Forget all faults and their histories; requests that already suffer go on suffering."""
        self.armed = tuple(ArmedFault(fault) for fault in faults)

    def draw(self, phase: Phase, route: str, model: str = "") -> Fault | None:
        """The fault of this occasion, if any; each call counts as a match in its history."""
        if not self.armed:
            return None
        chance = self._draws.below(1_000_000) / 1_000_000
        self.armed, fault = fire(self.armed, Occasion(phase, route, model), chance)
        return fault
