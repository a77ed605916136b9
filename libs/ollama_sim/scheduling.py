"""The scheduler's decisions, as functions of values; `scheduler` acts on them."""

from collections.abc import Sequence

import msgspec

from libs.ollama_sim.models import Model
from libs.ollama_sim.options import RunnerOptions

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


def gpu_limit(model: Model, options: RunnerOptions) -> float:
    """The share of the model that `num_gpu` (layers) allows on the GPU; automatic or negative = all that fits."""
    if options.num_gpu is None or options.num_gpu < 0:
        return 1.0
    return min(1.0, options.num_gpu / (model.block_count + 1))


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
