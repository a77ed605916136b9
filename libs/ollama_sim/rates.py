"""How fast a model runs where it was put."""

import msgspec

REFERENCE_BYTES = 4_500_000_000
"""Rates of a described machine hold for a model of this size, about 7B in Q4_K_M; others scale with their size."""


class Rates(msgspec.Struct, frozen=True):
    """Tokens per (simulated) second of one request alone."""

    decode_tps: float
    prefill_tps: float
    does_share_prefill: bool = False  # prompts that are read at the same time slow each other


def rates_of(size_bytes: int, gpu_share: float, gpu: Rates, cpu: Rates) -> Rates:
    """Both rates are for the reference size; a token passes the layers on both sides, so their times add up."""
    factor = REFERENCE_BYTES / max(1, size_bytes)
    return Rates(
        decode_tps=factor * _mixed(gpu_share, gpu.decode_tps, cpu.decode_tps),
        prefill_tps=factor * _mixed(gpu_share, gpu.prefill_tps, cpu.prefill_tps),
        does_share_prefill=True,
    )


def decode_share(busy_slots: int) -> float:
    """Speed of one slot next to others, against its speed alone; the total rises, but less than linearly."""
    return (1.0, 1.0, 0.6, 0.45, 0.35)[busy_slots] if busy_slots <= 4 else 1.4 / busy_slots


def _mixed(gpu_share: float, gpu: float, cpu: float) -> float:
    return 1.0 / (gpu_share / gpu + (1.0 - gpu_share) / cpu)
