"""How much work waits for each model, and for each node that holds it, in seconds. Pure.

The work of a model is spread evenly over the slots of the nodes that hold it; a node's level is what its models bring, the time
until it has drained. A client that asked for more than its share counts as if it had asked for its share: what it asked beyond
moves no model.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from services.router.fleet import NodeView

HORIZON_S = 60.0  # for which shares are reckoned


class Backlog(NamedTuple):
    queued: Mapping[str, float]  # by model: slot-seconds
    levels: Mapping[str, float]  # by node: seconds until what waits for its models is done

    def drains_in(self, model: str, holders: Iterable[str]) -> float:
        """Until the last job that waits for this model gets a slot on the nodes that hold it now."""
        return min((self.levels.get(node, 0.0) for node in holders), default=0.0)


def shares(waiting: Mapping[str, float], capacity: float) -> dict[str, float]:
    """Max-min: how much of its work each client may bring, when all of it is more than `capacity` (slot-seconds)."""
    left, granted = capacity, {}
    clients = sorted(waiting, key=lambda client: waiting[client])
    for n, client in enumerate(clients):
        granted[client] = min(waiting[client], max(0.0, left) / (len(clients) - n))
        left -= granted[client]
    return granted


def backlog(
    waiting: Mapping[str, Mapping[str, int]],
    work: Mapping[str, float],
    holders: Mapping[str, Iterable[NodeView]],
    slots: int,
) -> Backlog:
    """`waiting`: jobs by model and client; `work`: seconds of a slot that one takes; `holders`: nodes by model."""
    queued = worked_off(waiting, work, slots * HORIZON_S)
    levels: dict[str, float] = {}
    for model, seconds in queued.items():
        nodes = list(holders.get(model, ()))
        total = sum(node.beat.slots for node in nodes)
        for node in nodes:
            levels[node.name] = levels.get(node.name, 0.0) + seconds / max(1, total)
    return Backlog(queued, levels)


def worked_off(
    waiting: Mapping[str, Mapping[str, int]], work: Mapping[str, float], capacity: float
) -> dict[str, float]:
    """Slot-seconds that wait for each model, of each client no more than its share of `capacity`; `waiting` as above."""
    of_client: dict[str, float] = {}
    for model, clients in waiting.items():
        for client, count in clients.items():
            of_client[client] = of_client.get(client, 0.0) + count * work[model]
    granted = shares(of_client, capacity)
    scale = {client: granted[client] / asked if asked else 1.0 for client, asked in of_client.items()}
    return {
        model: sum(count * work[model] * scale[client] for client, count in clients.items())
        for model, clients in waiting.items()
    }
