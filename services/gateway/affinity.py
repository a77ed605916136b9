"""The prompt as a chain of keyed hashes: what the router knows of a prompt, to send what goes on to where it is cached. Pure.

Ollama keeps the longest token prefix it has seen (ollama-facts.md §4), so each hash covers everything before its place.
Places are the same in every request that begins alike: fixed ones whose distance grows with their depth, the ends of tools
and system prompts, and the ends of the newest messages. The last of a turn's places is among those of the next turn, as long
as no more than TIPS messages were added: whoever looks for the longest known prefix takes the last entry that it knows.

Hashes are salted for each client. That two clients send the same system prompt would save a prefill now and then, but the
answer time, and `cached_tokens` in an explained decision, would then tell one client what another one sends.
"""

import hashlib
from typing import NamedTuple

import msgspec

from libs.common.contracts.nodes import canonical_model
from libs.common.contracts.requests import Kind, Request
from services.gateway.prompt import Piece, pieces, tokens, tokens_at

MAX_ENTRIES = 32
TIPS = 8  # ends of the newest messages; an agent's turn adds an answer and one message for each tool that it called
HEADS = 2  # the end of the tools, and of the system prompt
# Bytes: from 64 tokens to 320,000. Two requests that part somewhere share at least two thirds of what they have in common.
CUTS = tuple(int(256 * 1.5**n) for n in range(MAX_ENTRIES - TIPS - HEADS))
MIN_TOKENS = 16  # less is computed sooner than it is looked for
_HASH_BYTES = 8


class Reading(NamedTuple):
    """`chain` has `"<hash>:<tokens up to there>"`, the longest prefix last; `tokens` is the estimate of the whole prompt."""

    chain: tuple[str, ...]
    tokens: int


def read_prompt(key: bytes, client: str, kind: Kind, request: Request) -> Reading:
    """`key` is the cluster's: without it, hashes say nothing of prompts."""
    parts = pieces(kind, request)
    whole = tokens(parts)
    if kind is Kind.EMBED or whole < MIN_TOKENS:
        return Reading((), whole)
    return Reading(_chain(key, _seed(client, kind, request), parts), whole)


def _seed(client: str, kind: Kind, request: Request) -> bytes:
    """What decides about every token of the prompt."""
    level = request.think if isinstance(request.think, str) else None  # gpt-oss writes it into its first lines
    return msgspec.json.encode([client, canonical_model(request.model), kind, request.template, request.raw, level])


def _chain(key: bytes, seed: bytes, parts: list[Piece]) -> tuple[str, ...]:
    places = _places(parts)
    hashing = hashlib.blake2b(seed + b"\n", digest_size=_HASH_BYTES, key=key)
    entries, start, images = [], 0, 0
    for part in parts:
        end, done = start + len(part.text), 0
        while places and places[0] <= end:
            place = places.pop(0)
            hashing.update(part.text[done : place - start])
            done = place - start
            count = tokens_at(place, images + (part.images if place == end else 0))
            if count >= MIN_TOKENS:
                entries.append(f"{hashing.copy().hexdigest()}:{count}")
        hashing.update(part.text[done:])
        start, images = end, images + part.images
    return tuple(entries)


def _places(parts: list[Piece]) -> list[int]:
    ends, heads, size = [], [], 0
    for part in parts:
        size += len(part.text)
        if part.is_end:
            ends.append(size)
        if part.is_head:
            heads.append(size)
    heads = heads[:1] + heads[1:][-1:]
    return sorted({*(cut for cut in CUTS if cut <= size), *heads, *ends[-TIPS:]})
