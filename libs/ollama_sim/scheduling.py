"""The scheduler's decisions, as functions of values; `scheduler` acts on them."""

from collections.abc import Sequence

import msgspec

from libs.ollama_sim.models import Model
from libs.ollama_sim.options import RunnerOptions

_FREE_SHARE = 0.8  # next to another model, a model must fit into this part of the free memory
_MIN_VISION_CTX = 2048


class Resident(msgspec.Struct, frozen=True):
    """A loaded model as the victim's choice sees it."""

    blob_id: str
    keep_alive_s: float
    is_idle: bool


def choose_victim(residents: Sequence[Resident]) -> Resident:
    """The one to unload: idle before busy, then the shortest keep_alive, then the blob's path. Age does not count."""
    ordered = sorted(residents, key=lambda each: (each.keep_alive_s, each.blob_id))
    return next((each for each in ordered if each.is_idle), ordered[0])


def effective_ctx(model: Model, options: RunnerOptions, default_num_ctx: int) -> int:
    """Per-slot context: the request's or the server's, at most what the model was trained with."""
    wanted = options.num_ctx or default_num_ctx
    if model.can_see:
        wanted = max(wanted, _MIN_VISION_CTX)
    return min(wanted, model.context_length)


def needs_reload(loaded: RunnerOptions, wanted: RunnerOptions, model: Model, default_num_ctx: int) -> bool:
    """Whether a loaded model cannot serve these options; an automatic value differs from an explicit other one."""
    if loaded.does_shift != wanted.does_shift:
        return True
    if effective_ctx(model, loaded, default_num_ctx) != effective_ctx(model, wanted, default_num_ctx):
        return True
    if wanted.use_mmap is not None and wanted.use_mmap != loaded.use_mmap:
        return True
    if wanted.num_gpu is not None and wanted.num_gpu >= 0 and wanted.num_gpu != loaded.num_gpu:
        return True
    return (loaded.num_batch, loaded.main_gpu, loaded.num_thread, loaded.draft_num_predict) != (
        wanted.num_batch,
        wanted.main_gpu,
        wanted.num_thread,
        wanted.draft_num_predict,
    )


def size_in_memory(model: Model, num_ctx: int, slots: int) -> int:
    """Weights and key-value cache of all slots."""
    return int(model.size_bytes * 1.02) + model.kv_bytes_per_token * num_ctx * slots


def must_evict(loaded_count: int, runner_limit: int, needed_bytes: int, used_bytes: int, vram_bytes: int) -> bool:
    """Whether a victim has to go before the next load; a first model is loaded whether it fits or not."""
    if loaded_count == 0:
        return False
    if loaded_count >= runner_limit:
        return True
    return vram_bytes > 0 and needed_bytes > _FREE_SHARE * (vram_bytes - used_bytes)


def decode_share(busy_slots: int) -> float:
    """Speed of one slot next to others, against its speed alone; the total rises, but less than linearly."""
    return (1.0, 1.0, 0.6, 0.45, 0.35)[busy_slots] if busy_slots <= 4 else 1.4 / busy_slots
