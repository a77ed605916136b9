"""Which prompts a node is believed to hold in its cache, by hash chains that gateways made (DESIGN §5.3 of the routing notes:
prompts themselves never come here). Pure.

An entry of a chain is `<hash>:<tokens up to here>`, and each hash covers all before it, so the longest known entry says how
many tokens need no prefill. Ollama keeps the last prompt of each slot, and more in RAM (ollama-facts.md §4): what was not
used for long is forgotten first.
"""

from collections import OrderedDict
from collections.abc import Iterable

MAX_ENTRIES = 2048  # per node and model


class Prefixes:
    def __init__(self) -> None:
        self._held: dict[str, dict[str, OrderedDict[str, None]]] = {}  # digests by model and node

    def remember(self, node: str, model: str, chain: tuple[str, ...]) -> None:
        if not chain:
            return
        held = self._held.setdefault(model, {}).setdefault(node, OrderedDict())
        for entry in chain:
            digest, _ = read_entry(entry)
            held[digest] = None
            held.move_to_end(digest)
        while len(held) > MAX_ENTRIES:
            held.popitem(last=False)

    def tokens(self, node: str, model: str, chain: tuple[str, ...]) -> int:
        """How many of the prompt's first tokens that node holds for that model."""
        held = self._held.get(model, {}).get(node)
        if not held or not chain:
            return 0
        for entry in reversed(chain):
            digest, tokens = read_entry(entry)
            if digest in held:
                return tokens
        return 0

    def holding_more(self, nodes: Iterable[str], model: str, chain: tuple[str, ...], than: int) -> list[str]:
        """Those of these nodes that hold more than so many of the prompt's first tokens."""
        wanted = {digest for digest, tokens in map(read_entry, chain) if tokens > than}
        known = self._held.get(model, {})
        return [node for node in nodes if node in known and not known[node].keys().isdisjoint(wanted)]

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
