"""Where a job goes: to the cheapest slot that is free now, or nowhere yet, because waiting is cheaper. Pure.

Among nodes that hold the model, or are loading it, the smallest price wins. Copies are added ahead of need (`replicas`); here a
node loads a model for a job only while no node holds it.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from libs.common.contracts.jobs import Candidate, Decision
from services.router.fleet import NodeView
from services.router.pricing import DECODE_COUNTS, Ask, Terms

MAX_CANDIDATES_KEPT = 16  # in the record of a job; a fleet has up to fifty nodes
BUSY_WINS = 0.9  # a busy node is waited for if it is quicker by so much, because it holds the prompt, or decodes faster
NOTHING_CACHED: Mapping[str, int] = {}


class Priced(NamedTuple):
    node: NodeView
    terms: Terms
    score: float


class Need(NamedTuple):
    """How much a model that no node holds is waited for, in seconds."""

    oldest: float  # by its next job
    waited: float  # by all its jobs together


def rank(ask: Ask, priced: Iterable[tuple[NodeView, Terms]]) -> list[Priced]:
    """Cheapest first; a node that failed the job before comes last; then the less loaded, then who was idle for longest."""
    found = [Priced(node, terms, terms.score(ask.priority)) for node, terms in priced]
    found.sort(
        key=lambda p: (
            p.node.name in ask.avoid, round(p.score, 3), len(p.node.runs) / max(1, p.node.beat.slots),
            p.node.last_bound_at, p.node.name,
        )
    )  # fmt: skip
    return found


def rank_warm(
    ask: Ask, speeds: Iterable[tuple[NodeView, float, float]], cached: Mapping[str, int] = NOTHING_CACHED
) -> list[Priced]:
    """The first of `rank` for nodes with a free slot and the model in memory, by seconds per prompt token and per output token:
    only prefill and decode differ. In a large fleet they are many, and few are kept.

    `cached`: tokens of the prompt that nodes hold, by name, and always fewer than the prompt has."""
    prompt, output, counts = max(0, ask.prompt_tokens), ask.output_tokens, DECODE_COUNTS[ask.priority]
    avoid = ask.avoid
    found = []
    for node, prefill_s, decode_s in speeds:
        name = node.name
        prefill, decode = (prompt - cached.get(name, 0)) * prefill_s, output * decode_s
        score = prefill + counts * decode
        busy = len(node.runs) / max(1, node.beat.slots)
        found.append((name in avoid, round(score, 3), busy, node.last_bound_at, name, node, prefill, decode, score))
    found.sort()  # names differ
    return [
        Priced(node, Terms(0.0, 0.0, prefill, decode, 0.0, 0.0, cached.get(node.name, 0), ()), score)
        for *_, node, prefill, decode, score in found[:MAX_CANDIDATES_KEPT]
    ]


def pays(need: Need, load: Priced, *, level: float, queued: int) -> bool:
    """Is it time to load a model that nobody holds? `level`: seconds of work that wait for this node's own models, `queued` jobs.

    At once where nobody waits for the slot; else when its jobs together have waited as long as the others will have to, or the
    oldest longer than its turn was due: so nothing starves, and several jobs share one load.
    """
    load_s, harm_s = load.terms.load_s, load.terms.harm_s
    delay = load_s * queued / max(1, load.node.beat.slots)
    return level <= 0 or need.waited >= delay + harm_s or need.oldest >= level + load_s


def worth_waiting(ask: Ask, best: Priced, busy: Iterable[tuple[NodeView, Terms]]) -> bool:
    """Will a node without a free slot have it done sooner than the best that has one?"""
    waits = rank(ask, busy)
    return bool(waits) and waits[0].node.name not in ask.avoid and waits[0].score < BUSY_WINS * best.score


def explain(chosen: Priced, others: Sequence[Priced], refused: Iterable[Candidate], *, waited_ms: int) -> Decision:
    candidates = [_candidate(priced) for priced in (chosen, *others)]
    candidates += refused
    terms = chosen.terms
    return Decision(
        node=chosen.node.name,
        reason=candidates[0].verdict,
        cold=terms.load_s > 0,
        waited_ms=waited_ms,
        ttft_s=round(terms.ttft_s, 3),
        load_s=round(terms.load_s, 3),
        cached_tokens=terms.cached_tokens,
        candidates=tuple(candidates[:MAX_CANDIDATES_KEPT]),
    )


@functools.lru_cache(maxsize=10_000)
def refused(node: str, why: str) -> Candidate:
    """One that was not priced. Most of a fleet is refused at each decision, for few reasons: they are made once."""
    return Candidate(node=node, verdict=why)


def describe(terms: Terms) -> str:
    parts = ["model in memory" if terms.load_s <= 0 else f"model not in memory, loads in {terms.load_s:.1f} s"]
    if terms.evict:
        parts.append(f"{', '.join(terms.evict)} leaves for it")
    if terms.wait_s > 0:
        parts.append(f"a slot in {terms.wait_s:.1f} s")
    if terms.cached_tokens:
        parts.append(f"{terms.cached_tokens} tokens of the prompt are cached")
    parts.append(f"first token in {terms.ttft_s:.1f} s")
    return ", ".join(parts)


def _candidate(priced: Priced) -> Candidate:
    terms = priced.terms
    return Candidate(
        node=priced.node.name,
        verdict=describe(terms),
        wait_s=round(terms.wait_s, 3),
        load_s=round(terms.load_s, 3),
        prefill_s=round(terms.prefill_s, 3),
        decode_s=round(terms.decode_s, 3),
        harm_s=round(terms.harm_s + terms.crowd_s, 3),
        score_s=round(priced.score, 3),
    )
