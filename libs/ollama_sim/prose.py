"""Readable text without meaning: an endless run of sentences about roads and mules, one token at a time."""

from collections.abc import Iterator

from libs.ollama_sim.draws import Draws

_ADJECTIVES = (
    "old", "quiet", "narrow", "patient", "blue", "distant", "warm", "stubborn", "early", "dusty",
    "bright", "slow", "gentle", "green", "steady", "café-brown", "silver", "low", "honest", "naïve",
)  # fmt: skip
_NOUNS = (
    "road", "mule", "bridge", "river", "valley", "driver", "señor", "village", "letter", "lantern",
    "pass", "morning", "train", "market", "garden", "jalapeño", "shepherd", "caravan", "river bank", "llama 🦙",
    "winter", "window", "song", "harbour", "東京 express", "mountain", "kettle", "neighbour", "cloud", "story",
)  # fmt: skip
_VERBS = (
    "waits", "rests", "turns", "listens", "wanders", "settles", "climbs", "sleeps", "returns", "sings",
    "travels", "stands", "shines", "stays", "works",
)  # fmt: skip
_PLACES = ("under", "beside", "beyond", "above", "near", "behind", "along", "across from")
_OPENINGS = ("The", "A", "Every", "One", "Another", "This", "That", "No")
_LINKS = ("and", "while", "because", "so", "but")
_TIMES = ("at noon", "before dawn", "in spring", "after the rain", "all day", "tonight", "again")


def sentences(draws: Draws) -> Iterator[str]:
    """Tokens for ever; a token is a word with the space before it, or a punctuation mark."""
    is_first = True
    while True:
        for token in _sentence(draws):
            yield token[1:] if is_first else token
            is_first = False


def _sentence(draws: Draws) -> Iterator[str]:
    yield f" {_OPENINGS[draws.below(len(_OPENINGS))]}"
    yield from _subject_and_verb(draws)
    if draws.below(3) == 0:
        yield ","
        yield f" {_LINKS[draws.below(len(_LINKS))]}"
        yield " the"
        yield from _subject_and_verb(draws)
    if draws.below(3) == 0:
        yield from _spaced(_TIMES[draws.below(len(_TIMES))])
    yield "."


def _subject_and_verb(draws: Draws) -> Iterator[str]:
    if draws.below(2):
        yield f" {_ADJECTIVES[draws.below(len(_ADJECTIVES))]}"
    yield from _spaced(_NOUNS[draws.below(len(_NOUNS))])
    yield f" {_VERBS[draws.below(len(_VERBS))]}"
    if draws.below(2):
        yield from _spaced(_PLACES[draws.below(len(_PLACES))])
        yield " the"
        yield from _spaced(_NOUNS[draws.below(len(_NOUNS))])


def _spaced(words: str) -> Iterator[str]:
    for word in words.split(" "):
        yield f" {word}"
