"""What others lose when a model leaves a node's memory, at one moment. Pure."""

from collections.abc import Callable, Mapping

from services.router.fleet import NodeView
from services.router.pricing import Pricing
from services.router.replicas import Survey
from services.router.roster import Roster

PAYS_WITHIN_S = 1000.0  # what a copy costs now it must bring within so long
STAYS_S, STAYS_LOADS = 60.0, 3.0  # a model that was just loaded stays: so long, or so many times its load
NEVER_S = 1e5  # harm that nothing pays for
KEPT_S = 1e7  # harm for which no copy is even looked at


class Harm:
    """As long as nothing changes on the nodes; after that, `forget`."""

    def __init__(
        self,
        pricing: Pricing,
        roster: Roster,
        nodes: Mapping[str, NodeView],
        survey: Callable[[], Survey],
        now: float,
    ) -> None:
        self._pricing, self._roster, self._nodes, self._survey, self._now = pricing, roster, nodes, survey, now
        self._known: dict[tuple[str, str], float] = {}

    def forget(self) -> None:
        self._known.clear()

    def of(self, model: str, node: str) -> float:
        """Seconds."""
        known = self._known.get((model, node))
        if known is None:
            known = self._known[model, node] = self._reckon(model, self._nodes[node])
        return known

    def is_last(self, model: str, node: NodeView) -> bool:
        """Nobody else has it in memory, and it will be asked for."""
        if any(model in other.resident for other in self._roster.holding(model).values() if other is not node):
            return False
        return self._pricing.demand.per_second(model, self._now) > 0

    def _reckon(self, model: str, view: NodeView) -> float:
        pricing, now = self._pricing, self._now
        load_s = pricing.load_s(view, model)
        harm = PAYS_WITHIN_S * self._survey().loss(model, view.name, load_s)
        stays_s = max(STAYS_S, STAYS_LOADS * load_s)
        asked = pricing.demand.per_second(model, now) > 0
        if asked and now - view.loaded_at.get(model, 0.0) < stays_s:
            harm += KEPT_S
        if asked and self.is_last(model, view):  # it would soon be loaded again, and push out another
            harm += NEVER_S * pricing.demand.chance(model, now, PAYS_WITHIN_S)
        return harm
