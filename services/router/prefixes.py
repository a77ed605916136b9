"""Which prompts a node is believed to hold in its cache, by hash chains that gateways made (DESIGN §5.3 of the routing notes:
prompts themselves never come here). Pure.

An entry of a chain is `<hash>:<tokens up to here>`, and each hash covers all before it, so the longest known entry says how
many tokens need no prefill. Ollama keeps the last prompt of each slot, and more in RAM (ollama-facts.md §4): what was not
used for long is forgotten first. How soon that is, depends on slots, lengths and release, so it is learned (`keeping`).
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

MAX_ENTRIES = 2048  # per node and model


class Found(NamedTuple):
    """So many of the prompt's first tokens came there with a prompt after which the node had so many others of the model."""

    tokens: int
    since: int


NOTHING_FOUND = Found(0, 0)


class Held:
    """By one node of one model."""

    def __init__(self) -> None:
        self.prompts = 0  # that came, each with a number
        self.newest: OrderedDict[str, int] = OrderedDict()  # of the prompts with this digest, by digest

    def remember(self, chain: Iterable[str]) -> Found:
        """One more prompt; gives what there was of it before."""
        newest, before = self.newest, self.prompts
        now = self.prompts = before + 1
        held, at = 0, before
        for entry in chain:
            digest, tokens = read_entry(entry)
            if (known := newest.get(digest)) is not None:
                held, at = tokens, known
            newest[digest] = now
            newest.move_to_end(digest)
        while len(newest) > MAX_ENTRIES:
            newest.popitem(last=False)
        return Found(held, before - at)


class Prefixes:
    def __init__(self) -> None:
        self._held: dict[str, dict[str, Held]] = {}  # by model and node

    def remember(self, node: str, model: str, chain: tuple[str, ...]) -> Found:
        """A prompt has come there; gives what `found` has said until now."""
        if not chain:
            return NOTHING_FOUND
        nodes = self._held.setdefault(model, {})
        held = nodes.get(node)
        if held is None:
            held = nodes[node] = Held()
        return held.remember(chain)

    def found(self, node: str, model: str, chain: tuple[str, ...]) -> Found:
        held = self._held.get(model, {}).get(node)
        if held is None or not chain:
            return NOTHING_FOUND
        for entry in reversed(chain):
            digest, tokens = read_entry(entry)
            if (newest := held.newest.get(digest)) is not None:
                return Found(tokens, held.prompts - newest)
        return NOTHING_FOUND

    def holding_more(self, nodes: Iterable[str], model: str, chain: tuple[str, ...], than: int) -> list[str]:
        """Those of these nodes that hold more than so many of the prompt's first tokens."""
        wanted = {digest for digest, tokens in map(read_entry, chain) if tokens > than}
        known = self._held.get(model, {})
        return [node for node in nodes if node in known and not known[node].newest.keys().isdisjoint(wanted)]

    def keep_only(self, node: str, models: Iterable[str]) -> None:
        """What left memory took its cache along."""
        kept = set(models)
        for model, nodes in self._held.items():
            if model not in kept:
                nodes.pop(node, None)


def read_entry(entry: str) -> tuple[str, int]:
    """An entry that says no number of tokens stands for none: it came from somebody newer or older than this."""
    digest, _, tokens = entry.partition(":")
    return digest, int(tokens) if tokens.isdecimal() else 0
