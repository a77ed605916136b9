"""What a simulated model says: a pure function of the seed, the model, the prompt and the `seed` option.

A prompt that already holds the beginning of its own answer gets exactly the rest of it. That is found without any
markup: the shortest beginning of the text after the header whose answer starts with all that follows it. A longer
cut of the same answer finds the same beginning, so answers can be cut and continued any number of times.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from enum import StrEnum

import msgspec

from libs.ollama_sim.directives import Directives, ToolOrder
from libs.ollama_sim.draws import Draws, key_of
from libs.ollama_sim.prose import sentences

THINK_OPEN = "<think>\n"
THINK_CLOSE = "\n</think>\n\n"
EMPTY_THINK = "<think>\n\n</think>\n\n"

_JSON_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])")
_MAX_SEARCH = 32_000  # characters of unmarked prompt that are searched for the beginning of an answer


class PieceKind(StrEnum):
    MARK = "mark"  # think markup: counted as tokens, hidden where a parser looks at the output
    THOUGHT = "thought"
    TEXT = "text"
    CALL = "call"  # the markup of a tool call


class Piece(msgspec.Struct, frozen=True):
    """One generated token."""

    kind: PieceKind
    text: str


class Beginning(StrEnum):
    """Where in an answer the model stands when it starts to write."""

    ANSWER = "answer"  # no thinking
    THINK_MARK = "think-mark"  # it opens its thought itself
    THOUGHT = "thought"  # the prompt has opened the thought


class Style(msgspec.Struct, frozen=True):
    """What the request asks of the answer, besides the prompt."""

    beginning: Beginning = Beginning.ANSWER
    directives: Directives = Directives()
    calls: tuple[ToolOrder, ...] = ()
    json_text: Callable[[Draws], str] | None = None


class Identity(msgspec.Struct, frozen=True):
    """Who answers: equal identities give equal answers to equal prompts."""

    seed: int
    blob_id: str
    option_seed: int | None


def answer(key: int, style: Style) -> Iterator[Piece]:
    """All tokens of the answer that belongs to this key, from its very beginning."""
    if style.beginning is Beginning.THINK_MARK:
        yield Piece(PieceKind.MARK, "<think>")
        yield Piece(PieceKind.MARK, "\n")
    if style.beginning is not Beginning.ANSWER:
        yield from _prose(key_of(key, "thought"), style.directives.think_tokens, (8, 40), PieceKind.THOUGHT)
        yield Piece(PieceKind.MARK, "\n")
        yield Piece(PieceKind.MARK, "</think>")
        yield Piece(PieceKind.MARK, "\n\n")
    if style.calls:
        yield from _calls(style.calls)
    elif style.json_text is not None:
        yield from _tokenized(style.json_text(Draws(key)), PieceKind.TEXT)
    elif style.directives.say is not None:
        yield from _tokenized(style.directives.say, PieceKind.TEXT)
    else:
        yield from _prose(key, style.directives.tokens, (24, 120), PieceKind.TEXT)


class Continuation(msgspec.Struct, frozen=True):
    """What is still to be written, and how many tokens of it the prompt already holds."""

    pieces: Iterator[Piece]
    tokens_done: int = 0


def continuation(identity: Identity, prompt: str, start: int, style: Style, *, is_marked: bool = True) -> Continuation:
    """The rest of the answer; `start` is where it begins, or, in an unmarked prompt, the first place it may begin."""
    if len(prompt) - start > _MAX_SEARCH:
        start = len(prompt)
    digest = hashlib.blake2b(_base(identity) + _encode(prompt[:start]), digest_size=8)
    for position in range(start, len(prompt) + 1):
        written = prompt[position:]
        style_here = style if position == start or not is_marked else _resumed(style, prompt[start:position])
        pieces = answer(int.from_bytes(digest.digest(), "big"), style_here)
        rest = skip(pieces, written)
        if rest is not None:
            return rest
        digest.update(_encode(prompt[position]))
    raise AssertionError("an empty rest always matches")


def skip(pieces: Iterator[Piece], written: str) -> Continuation | None:
    """What follows `written` in the answer, or None when the answer does not start with it; may split a token."""
    done, position = 0, 0
    while position < len(written):
        piece = next(pieces, None)
        if piece is None:
            return None
        left = len(written) - position
        if len(piece.text) > left:
            if not piece.text.startswith(written[position:]):
                return None
            cut = Piece(piece.kind, piece.text[left:])
            return Continuation(itertools.chain([cut], pieces), done)
        if not written.startswith(piece.text, position):
            return None
        position += len(piece.text)
        done += 1
    return Continuation(pieces, done)


def _resumed(style: Style, unknown: str) -> Style:
    """The style of an answer to a text that somebody else began: prose from here on, inside an open thought or not."""
    is_in_thought = style.beginning is not Beginning.ANSWER and "</think>" not in unknown
    is_in_thought &= style.beginning is Beginning.THOUGHT or "<think>" in unknown
    return Style(
        beginning=Beginning.THOUGHT if is_in_thought else Beginning.ANSWER,
        directives=style.directives if is_in_thought else Directives(),
        calls=style.calls if is_in_thought else (),
        json_text=style.json_text if is_in_thought else _closing(unknown) if style.json_text else None,
    )


def _closing(begun: str) -> Callable[[Draws], str]:
    """Ends a JSON text that was begun elsewhere; valid JSON, though not always by the schema."""

    def close(_: Draws) -> str:
        return close_json(begun)

    return close


def close_json(begun: str) -> str:
    """The shortest text that makes valid JSON of a beginning."""
    closers: list[str] = []
    is_in_string = is_escaped = False
    last = ""
    is_key = False
    for character in begun:
        if is_in_string:
            is_in_string = is_escaped or character != '"'
            is_escaped = character == "\\" and not is_escaped
            continue
        if character == '"':
            is_key = bool(closers) and closers[-1] == "}" and last in {"{", ","}
            is_in_string = True
        elif character in "{[":
            closers.append("}" if character == "{" else "]")
        elif character in "}]" and closers:
            closers.pop()
        if not character.isspace():
            last = character
    text = '"' if is_in_string else ""
    if is_in_string or last == '"':
        text += ": true" if is_key else ""
    elif last == ":":
        text += " true"
    elif last == ",":
        text += ' "more": true' if closers and closers[-1] == "}" else " true"
    return text + "".join(reversed(closers)) if begun.strip() else "{}"


def _prose(key: int, length: int | None, usual: tuple[int, int], kind: PieceKind) -> Iterator[Piece]:
    draws = Draws(key)
    count = draws.between(*usual) if length is None else length
    before = ""
    for index, token in enumerate(itertools.islice(sentences(draws), count)):
        # The last token closes the sentence, wherever the length has cut it.
        is_open = index > 0 and index == count - 1
        yield Piece(kind, token if not is_open else " 🦙" if before == "." else ".")
        before = token


def _calls(calls: tuple[ToolOrder, ...]) -> Iterator[Piece]:
    for call in calls:
        body = f'<tool_call>\n{{"name": "{call.name}", "arguments": {call.arguments}}}\n</tool_call>'
        yield from _tokenized(body, PieceKind.CALL)


def _tokenized(text: str, kind: PieceKind) -> Iterator[Piece]:
    position = 0
    for match in _JSON_TOKEN.finditer(text):
        yield Piece(kind, text[position : match.end()])
        position = match.end()
    if position < len(text):
        yield Piece(kind, text[position:])


def _base(identity: Identity) -> bytes:
    return _encode(f"{identity.seed}\0{identity.blob_id}\0{identity.option_seed}\0")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
