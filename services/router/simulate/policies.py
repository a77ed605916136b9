"""The policies by name, in the order in which they are shown."""

from services.router.simulate.baselines import AtRandom, LeastDepth, LoadedThenDepth, Oracle, RoundRobin
from services.router.simulate.failures import BadInput
from services.router.simulate.policy import Factory

PRODUCTION = "arriero"
POLICIES: dict[str, Factory] = {
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
        if name == PRODUCTION and name not in POLICIES:
            raise BadInput(f"the policy {PRODUCTION} is not in the simulator yet: choose from {', '.join(POLICIES)}")
        if name not in POLICIES:
            raise BadInput(f"there is no policy {name!r}: choose from {', '.join(POLICIES)}")
    return {name: POLICIES[name] for name in wanted}
