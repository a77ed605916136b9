"""How much of a prompt a node still has in its cache, by how many others of the model came there since: learned. Pure.

Ollama does not say how many tokens it found; that follows from how long the new ones took, at the rate that is known.
"""

from services.router.rates import Mean

NEWEST = 0.05  # weight of a new figure among many older ones: most are 0 or 1
# Figures that the guess stands for: a node's is what the fleet keeps, the fleet's that all is kept.
AS_MANY = 4
MOST = 8  # 128 others since, and more, are alike
MAX_KNOWN = 10_000  # of nodes and steps


class Keeping:
    def __init__(self) -> None:
        self._fleet: dict[int, Mean] = {}  # by how many others, in powers of two
        self._nodes: dict[tuple[str, int], Mean] = {}

    def share(self, node: str, since: int) -> float:
        """Of those tokens, after so many other prompts."""
        step = min(since.bit_length(), MOST)
        mean = self._nodes.get((node, step)) or self._fleet.get(step)
        return mean.value if mean else 1.0

    def learn(self, node: str, since: int, share: float) -> None:
        step = min(since.bit_length(), MOST)
        fleet = self._fleet.setdefault(step, Mean(NEWEST, 1.0, AS_MANY))
        if len(self._nodes) > MAX_KNOWN:
            self._nodes.clear()
        self._nodes.setdefault((node, step), Mean(NEWEST, fleet.value, AS_MANY)).add(share)
        fleet.add(share)
