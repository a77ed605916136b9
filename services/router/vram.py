"""What a model needs of a GPU's memory, and who has to leave for it. Pure (ollama-facts.md §6)."""

from collections.abc import Callable, Iterable, Mapping

GIB = 1024**3
# KV cache per token of context, f16, of a model of 4.5 GB; grows slower than the weights do. With the exponent it meets
# 112 KiB (3B), 128 KiB (8B) and 320 KiB (70B) of ollama-facts.md §6.3 within a sixth.
KV_PER_TOKEN, KV_EXPONENT = 130 * 1024, 0.4
REFERENCE_BYTES = 4.5e9
COMPUTE_BYTES = 0.75 * GIB  # buffers at batch 512 with flash attention
DEFAULT_CTX = 4096


def need(size: int, num_ctx: int | None) -> int:
    """Bytes of GPU memory for a model of `size` bytes on disk with that context, one slot."""
    if size <= 0:
        return 0
    return int(1.02 * size + kv_per_token(size) * (num_ctx or DEFAULT_CTX) + COMPUTE_BYTES)


def kv_per_token(size: int) -> float:
    scale: float = (size / REFERENCE_BYTES) ** KV_EXPONENT
    return KV_PER_TOKEN * scale


def regrown(seen: int, size: int, at_context: int, num_ctx: int | None) -> int:
    """Bytes with another context than the one it was seen with, where it took `seen`."""
    if not num_ctx or not at_context or num_ctx == at_context:
        return seen
    return max(size, seen + int(kv_per_token(size) * (num_ctx - at_context)))


def victims(
    wanted: int,
    capacity: int | None,
    held: Mapping[str, int],
    removable: Iterable[str],
    price: Callable[[str], float],
) -> tuple[str, ...] | None:
    """Which models leave so that `wanted` bytes fit beside those that stay; None if they cannot be made to fit.

    `held` is what is in memory, in bytes; `removable` those of it that may leave. The cheapest leave first, and none that
    the others make room for already. Without a known capacity Ollama decides itself.
    """
    if capacity is None:
        return ()
    missing = wanted + sum(held.values()) - capacity
    if missing <= 0:
        return ()
    chosen: list[str] = []
    for model in sorted(removable, key=lambda m: (price(m), m)):
        chosen.append(model)
        missing -= held[model]
        if missing <= 0:
            break
    else:
        return None
    for model in sorted(chosen, key=lambda m: (-price(m), m)):
        if missing + held[model] <= 0:
            chosen.remove(model)
            missing += held[model]
    return tuple(chosen)
