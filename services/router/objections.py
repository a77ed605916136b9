"""Why a node cannot take a job for a model now, whatever it would cost. Pure."""

from libs.common.contracts.catalog import OnCpu
from libs.common.contracts.requests import Priority
from services.router.catalog import Catalog
from services.router.fleet import Liveness, NodeView

NO_MODEL = "does not have the model"
ALL_TAKEN = "all slots taken"
STILL_LOADING = "is loading the model; until then its slots are for models in memory"
SMALL_BYTES = (
    2.5e9  # a 3B model at Q4: what a CPU still answers at reading speed (peers-and-routing.md, the old stack's rule)
)


def unfit(node: NodeView, catalog: Catalog, *, now: float, connected_at: float) -> str | None:
    """Why it takes no work at all."""
    if (liveness := node.liveness(now, connected_at)) is not Liveness.ALIVE:
        return f"node is {liveness}"
    beat = node.beat
    if beat.draining or catalog.draining(node.name):
        return "node is draining"
    if beat.slots <= 0:
        return "has no slots"
    if not beat.reachable:
        return "its Ollama fell silent and is being watched" if node.suspect else "its Ollama does not answer"
    if now < node.set_aside_until:
        return "set aside after failures"
    return None


def unable(model: str, node: NodeView, catalog: Catalog, *, priority: Priority, size: int) -> str | None:
    """Why it never takes this model, or not until something changes that is more than a slot."""
    if model not in node.disk:
        return NO_MODEL
    if model in node.suspect:
        return "the model fell silent there and is being watched"
    if node.beat.cold_stuck and model not in node.loaded:
        return "a load never came there: only models in memory"
    if node.beat.vram == 0:
        on_cpu = catalog.model(model).on_cpu
        if on_cpu is OnCpu.NEVER:
            return "has no GPU, and this model's policy asks for one"
        if on_cpu is OnCpu.AUTO and priority is not Priority.BATCH and size > SMALL_BYTES:
            return "has no GPU: it takes batch jobs and small models"
    return None


def full(model: str, node: NodeView) -> str | None:
    """Why it has no slot for this model now."""
    if node.free_slots <= 0:
        return ALL_TAKEN
    cap = node.beat.slots_per_model
    if cap and sum(other == model for other in node.runs.values()) >= cap:
        return "all slots of this model taken"
    if model not in node.resident and node.loading and model not in node.loading:
        return "another model is loading"
    if model not in node.resident and model in node.loading and node.resident:
        # Who took a slot now would keep it, until the model is there, from those whose model is (ADR 18).
        return STILL_LOADING
    return None


def summary(objections: set[str]) -> str:
    """The objections that say most: those of nodes that have the model, if there are any."""
    if not objections:
        return "no node has joined the fleet"
    return "; ".join(sorted(objections - {NO_MODEL})) or "no node has the model"
