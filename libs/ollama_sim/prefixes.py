"""Which part of a prompt the engine has already read: llama-server's slots, and its cache in the host's memory
(ollama-facts.md §4).

Pure. A text stands for its tokens, so lengths here are bytes of text; only exact common prefixes count.
"""

from collections.abc import Sequence

import msgspec

BYTES_PER_TOKEN = 4
_SIMILAR = 0.10  # of the prompt: with less in common, the slot that rested longest is taken
_WORTH_SAVING = 0.5  # a slot that would keep less of what it holds is saved first
_WORTH_RESTORING = 0.25  # what is saved is not taken out for less of itself than this
_FIRST_STRIDE = 256


class IdleSlot(msgspec.Struct, frozen=True):
    index: int
    held: bytes
    rested_since: float  # any clock


class Memory(msgspec.Struct, frozen=True):
    """What a slot starts with, and what the host's cache holds then, oldest first."""

    held: bytes
    saved: tuple[bytes, ...] = ()


def choose_slot(idle: Sequence[IdleSlot], prompt: bytes) -> int:
    """Index of the slot with the longest common prefix, or of the one that rested longest if none has enough."""
    best, most = None, _SIMILAR * len(prompt)
    for slot in idle:
        shared = common_prefix(slot.held, prompt)
        if shared > most:
            best, most = slot, shared
    return (best or min(idle, key=lambda each: (each.rested_since, each.index))).index


def recall(memory: Memory, prompt: bytes, limit: int) -> Memory:
    """Swap what the chosen slot holds for something saved that fits the prompt better; `limit` 0 = nothing is saved."""
    held, saved = memory.held, memory.saved
    shared = common_prefix(held, prompt)
    is_similar = shared > _SIMILAR * len(prompt)
    if not held or limit <= 0 or (is_similar and shared >= _WORTH_SAVING * len(held)):
        return memory
    saved = _with(saved, held, limit)
    best, most, kept = None, shared, shared / len(held)
    for each in saved:
        common = common_prefix(each, prompt)
        if common / len(each) >= _WORTH_RESTORING and common > most and common / len(each) > kept:
            best, most, kept = each, common, common / len(each)
    if best is None:
        return Memory(held, saved)
    return Memory(best, tuple(each for each in saved if each is not best))


def reused_tokens(prompt_tokens: int, prompt_bytes: int, shared_bytes: int) -> int:
    """Prompt tokens that need no prefill; the last one is always read, because the answer grows out of it."""
    if prompt_bytes <= 0:
        return 0
    return max(0, min(prompt_tokens * shared_bytes // prompt_bytes, prompt_tokens - 1))


def common_prefix(one: bytes, other: bytes) -> int:
    """Length of the longest common beginning, found in strides that double."""
    longest = min(len(one), len(other))
    done, stride = 0, _FIRST_STRIDE
    while done < longest and one[done : done + stride] == other[done : done + stride]:
        done, stride = done + stride, stride * 2
    if done >= longest:
        return longest
    low, high = done, min(done + stride, longest)  # they differ, or one ends, in between
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _with(saved: tuple[bytes, ...], held: bytes, limit: int) -> tuple[bytes, ...]:
    """Saved once more: nothing is kept twice, and the oldest go until the rest fits."""
    if any(each.startswith(held) for each in saved):
        return saved
    entries = [*(each for each in saved if not held.startswith(each)), held]
    total = sum(map(len, entries))
    while len(entries) > 1 and total > limit:
        total -= len(entries.pop(0))
    return tuple(entries)
