"""What the router orders with a run or a load: how long the model stays in memory, and with which context. Pure.

Clients have no say in either, or one of them could make every node load its models anew (ollama-facts.md §3.5): a request's
`num_ctx` is a need. What is in memory with enough context is used as it is; a model's context only grows.
"""

from typing import NamedTuple

from libs.common.contracts.catalog import ModelPolicy
from libs.common.contracts.nodes import canonical_model
from services.router.fleet import NodeView

PINNED = -1  # Ollama's word for "for ever"
POPULAR, SELDOM = "30m", "5m"  # the latter is Ollama's own default
POPULAR_PER_S = 1 / 600
MIN_CTX = 4096  # Ollama's smallest default; a smaller context saves nothing that counts


class Stay(NamedTuple):
    keep_alive: str | int
    num_ctx: int | None  # None: the node's own default


def stay(model: str, node: NodeView, policy: ModelPolicy, *, per_second: float, needed_ctx: int = 0) -> Stay:
    """`model` canonical; `per_second`: how often it is asked for; `needed_ctx`: 0, the request says nothing."""
    if node.name in policy.pins:
        keep_alive: str | int = PINNED
    elif policy.keep_alive is not None:
        keep_alive = policy.keep_alive
    else:
        keep_alive = POPULAR if per_second >= POPULAR_PER_S else SELDOM
    return Stay(keep_alive, policy.num_ctx or _context(model, node, needed_ctx))


def _context(model: str, node: NodeView, needed: int) -> int | None:
    loaded = next((m.context_length for m in node.beat.loaded if canonical_model(m.name) == model), 0)
    if loaded and needed <= loaded:
        return loaded
    if not needed:
        return None
    grown = MIN_CTX
    while grown < needed:
        grown *= 2
    return grown
