"""`GET /models`: every model of the fleet, where it is, and what operators decided about it; a node's state. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from libs.common.contracts.catalog import ModelPolicy
from libs.common.contracts.nodes import DEAD_S, SUSPECT_S, DiskModel, Heartbeat, LoadedModel, canonical_model


def state_of(beat: Heartbeat, silent: float, *, draining: bool) -> str:
    """One word for people; `silent` seconds have passed since the heartbeat."""
    if silent >= DEAD_S:
        return "dead"
    if silent >= SUSPECT_S:
        return "suspect"
    if draining:
        return "draining"
    return "ready" if beat.reachable else "unreachable"


def policy_view(policy: ModelPolicy) -> dict[str, Any]:
    return {
        "pins": list(policy.pins),
        "num_ctx": policy.num_ctx,
        "keep_alive": policy.keep_alive,
        "on_cpu": str(policy.on_cpu),
    }


def models_view(
    seen: Sequence[tuple[Heartbeat, float]],
    policies: Mapping[str, ModelPolicy],
    draining: Callable[[str], bool] = lambda node: False,
) -> list[dict[str, Any]]:
    """By name; one that only a policy names has no nodes. `seen`: heartbeats, and how many seconds ago each was."""
    disk: dict[str, dict[str, DiskModel]] = {}
    memory: dict[str, dict[str, LoadedModel]] = {}
    for beat, _ in seen:
        for model in beat.models:
            disk.setdefault(canonical_model(model.name), {})[beat.node] = model
        for loaded in beat.loaded:
            memory.setdefault(canonical_model(loaded.name), {})[beat.node] = loaded
    states = {beat.node: state_of(beat, silent, draining=draining(beat.node) or beat.draining) for beat, silent in seen}
    rows = []
    for name in sorted({*disk, *memory, *policies}):
        on_disk, in_memory = disk.get(name, {}), memory.get(name, {})
        first = next(iter(on_disk.values()), DiskModel(name=name))
        rows.append(
            {
                "name": first.name,
                "size": first.size or None,
                "parameter_size": first.parameter_size or None,
                "quantization": first.quantization or None,
                "capabilities": list(first.capabilities),
                # The same name with other bytes: a pull on the nodes that are behind makes them one again.
                "same_everywhere": len({model.digest for model in on_disk.values()}) <= 1,
                "nodes": [
                    {
                        "name": node,
                        "state": states[node],
                        "digest": on_disk[node].digest if node in on_disk else in_memory[node].digest,
                        "loaded": node in in_memory,
                        "size": in_memory[node].size if node in in_memory else None,
                        "size_vram": in_memory[node].size_vram if node in in_memory else None,
                        "context_length": in_memory[node].context_length if node in in_memory else None,
                        "expires_at": in_memory[node].expires_at or None if node in in_memory else None,
                    }
                    for node in sorted({*on_disk, *in_memory})
                ],
                "policy": policy_view(policies.get(name) or ModelPolicy(name=name)),
            }
        )
    return rows
