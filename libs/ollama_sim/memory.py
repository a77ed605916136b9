"""How much memory a loaded model needs, and how much of it is on the GPU. Figures: ollama-facts.md §3.10 and §6.

Two sums, as in reality: `predicted_bytes` is Ollama's own guess, which decides whether others must go; `needed_bytes`
is what the engine then really takes, which decides how much of the model is left to the CPU.
"""

from enum import StrEnum

import msgspec

from libs.ollama_sim.models import Model
from libs.ollama_sim.prefixes import BYTES_PER_TOKEN

_MIB = 2**20
_GIB = 2**30
_FREE_SHARE = 0.8  # next to another model, a model must be predicted to fit into this part of the free memory
_FILE_TO_WEIGHTS = 1.02
_COMPUTE = 300 * _MIB  # the engine's buffers at the smallest batch, with flash attention
_BATCH_SURCHARGES = ((32768, 2 * _GIB), (4096, 768 * _MIB))  # the automatic batch grows with the total context
_GPU_MARGIN = 1024 * _MIB + 460 * _MIB  # what the engine leaves free, and what the driver takes
_CONTEXT_TIERS = ((47 * _GIB, 262144), (23 * _GIB, 32768))  # total memory: OLLAMA_CONTEXT_LENGTH when it is unset
_LEAST_CONTEXT = 4096
_LONGEST_TEXT = 32 * _MIB


class KvType(StrEnum):
    """OLLAMA_KV_CACHE_TYPE."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"

    @property
    def part_of_f16(self) -> float:
        return {KvType.F16: 1.0, KvType.Q8_0: 1.0625 / 2, KvType.Q4_0: 0.5625 / 2}[self]


class Placement(msgspec.Struct, frozen=True):
    """Where a loaded model lies; `/api/ps` shows both sizes."""

    size_bytes: int
    vram_bytes: int

    @property
    def gpu_share(self) -> float:
        return self.vram_bytes / self.size_bytes if self.size_bytes else 1.0


def kv_bytes(model: Model, num_ctx: int, slots: int, kv_type: KvType = KvType.F16) -> int:
    return int(model.kv_bytes_per_token * num_ctx * slots * kv_type.part_of_f16)


def predicted_bytes(model: Model, num_ctx: int, slots: int) -> int:
    """`llm.PredictServerVRAM`: file, key-value cache as if it were f16, batch surcharge."""
    return model.size_bytes + kv_bytes(model, num_ctx, slots) + _surcharge(num_ctx * slots)


def needed_bytes(model: Model, num_ctx: int, slots: int, kv_type: KvType = KvType.F16) -> int:
    """Weights, key-value cache of all slots, compute buffers."""
    weights = int(model.size_bytes * _FILE_TO_WEIGHTS)
    return weights + kv_bytes(model, num_ctx, slots, kv_type) + _COMPUTE + _surcharge(num_ctx * slots)


def must_evict(loaded_count: int, runner_limit: int, predicted: int, used: int, vram: int) -> bool:
    """Whether a victim has to go before the next load; a first model is loaded whether it fits or not.

    Bytes; without a GPU (`vram` 0) only the count matters.
    """
    if loaded_count == 0:
        return False
    if loaded_count >= runner_limit:
        return True
    return vram > 0 and predicted > _FREE_SHARE * (vram - used)


def place(needed: int, used: int, vram: int, *, largest_share: float = 1.0) -> Placement:
    """Put as much on the GPU as is free there, less the margin, and at most `largest_share` of the model; bytes."""
    free = max(0, vram - used - _GPU_MARGIN)
    return Placement(needed, min(int(needed * largest_share), free))


def default_context(vram: int) -> int:
    """What a request without `num_ctx` gets on a node with this much GPU memory, in bytes."""
    return next((context for least, context in _CONTEXT_TIERS if vram >= least), _LEAST_CONTEXT)


def _surcharge(total_ctx: int) -> int:
    return next((surcharge for limit, surcharge in _BATCH_SURCHARGES if total_ctx > limit), 0)


def prefix_limit(model: Model, cache_mib: int, kv_type: KvType) -> int:
    """Bytes of text whose keys and values fit into the host's cache; bounded, since here the text itself is kept."""
    per_token = max(1, kv_bytes(model, 1, 1, kv_type))
    return min(cache_mib * _MIB // per_token * BYTES_PER_TOKEN, _LONGEST_TEXT)
