"""The policies by name, in the order in which they are shown."""

from services.router.simulate.arriero import Arriero
from services.router.simulate.baselines import AtRandom, LeastDepth, LoadedThenDepth, Oracle, RoundRobin
from services.router.simulate.failures import BadInput
from services.router.simulate.policy import Factory

POLICIES: dict[str, Factory] = {
    "arriero": Arriero,
    "loaded-then-depth": LoadedThenDepth,
    "least-depth": LeastDepth,
    "round-robin": RoundRobin,
    "random": AtRandom,
    "oracle": Oracle,
}


def choose(text: str) -> dict[str, Factory]:
    """`P[,P…]`; empty: all there are. Raises BadInput."""
    wanted = [name.strip() for name in text.split(",") if name.strip()] or list(POLICIES)
    for name in wanted:
        if name not in POLICIES:
            raise BadInput(f"there is no policy {name!r}: choose from {', '.join(POLICIES)}")
    return {name: POLICIES[name] for name in wanted}
