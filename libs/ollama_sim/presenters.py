"""Generated pieces as lines of chat and generate: what is shown where, and what waits for the final line."""

import re
import string
import time
from typing import Protocol

import msgspec

from libs.ollama_sim.answers import Piece, PieceKind
from libs.ollama_sim.draws import Draws, key_of
from libs.ollama_sim.models import ChatPath
from libs.ollama_sim.wire import (
    AnswerMessage,
    ChatLine,
    GenerateLine,
    Logprob,
    Metrics,
    ToolCall,
    ToolFunction,
    TopLogprob,
    go_time,
)

_CALL = re.compile(r'\s*<tool_call>\n\{"name": "(.*?)", "arguments": (.*)\}\n</tool_call>\Z', re.DOTALL)
_VOCABULARY = 32_000


class Presenter(Protocol):
    """Keeps what it has shown, so that an answer without streaming can be given whole."""

    def show(self, piece: Piece) -> msgspec.Struct | None:
        """The line for this piece, if it shows."""

    def final(self, done_reason: str, metrics: Metrics) -> tuple[msgspec.Struct, ...]:
        """The last lines of a stream."""

    def whole(self, done_reason: str, metrics: Metrics | None) -> msgspec.Struct:
        """The whole answer as one object; without metrics it is one that never got done."""


class Look(msgspec.Struct, frozen=True):
    """What decides how pieces are shown."""

    model: str  # as the request spelt it
    path: ChatPath
    does_parse: bool = True  # think markup and tool calls are taken out of the text
    repeated: str = ""  # stands in front of the first new text
    top_logprobs: int | None = None  # None = no logprobs


class _Calls:
    """Collects the text of tool calls until it is a call."""

    def __init__(self, *, is_native: bool) -> None:
        self._is_native = is_native
        self._text = ""
        self.made: list[ToolCall] = []

    def feed(self, text: str) -> ToolCall | None:
        self._text += text
        match = _CALL.match(self._text)
        if match is None:
            return None
        self._text = ""
        function = ToolFunction(len(self.made), match[1], msgspec.Raw(match[2].encode()))
        call = ToolCall(_call_id(function, is_native=self._is_native), function)
        self.made.append(call)
        return call


class ChatPresenter:
    def __init__(self, look: Look) -> None:
        self._look = look
        self._calls = _Calls(is_native=look.path is ChatPath.NATIVE)
        self._repeated = look.repeated
        self._content: list[str] = []
        self._thinking: list[str] = []
        self._logprobs: list[Logprob] = []

    def show(self, piece: Piece) -> ChatLine | None:
        match piece.kind:
            case PieceKind.MARK:
                return None
            case PieceKind.THOUGHT:
                self._thinking.append(piece.text)
                return self._line(AnswerMessage("assistant", "", thinking=piece.text), self._scored(piece))
            case PieceKind.TEXT:
                content, self._repeated = self._repeated + piece.text, ""
                self._content.append(content)
                return self._line(AnswerMessage("assistant", content), self._scored(piece))
            case PieceKind.CALL:
                call = self._calls.feed(piece.text)
                if call is None or self._look.path is ChatPath.NATIVE:
                    return None
                return self._line(AnswerMessage("assistant", "", tool_calls=[call]), [])

    def final(self, done_reason: str, metrics: Metrics) -> tuple[ChatLine, ...]:
        calls = self._calls.made if self._look.path is ChatPath.NATIVE else []
        last = self._done(AnswerMessage("assistant", "", tool_calls=calls), done_reason, metrics, [])
        if not self._repeated:
            return (last,)
        return (self._line(AnswerMessage("assistant", self._repeated), []), last)

    def whole(self, done_reason: str, metrics: Metrics | None) -> ChatLine:
        content = "".join(self._content) or self._repeated
        message = AnswerMessage("assistant", content, "".join(self._thinking), self._calls.made)
        if metrics is None:
            return self._line(message, self._logprobs)
        return self._done(message, done_reason, metrics, self._logprobs)

    def _line(self, message: AnswerMessage, logprobs: list[Logprob]) -> ChatLine:
        return ChatLine(self._look.model, go_time(time.time_ns()), message, False, logprobs=logprobs)

    def _done(self, message: AnswerMessage, reason: str, metrics: Metrics, logprobs: list[Logprob]) -> ChatLine:
        created = go_time(time.time_ns())
        counts = msgspec.structs.asdict(metrics)
        return ChatLine(self._look.model, created, message, True, reason, **counts, logprobs=logprobs)

    def _scored(self, piece: Piece) -> list[Logprob]:
        scored = logprobs_of(piece.text, self._look.top_logprobs)
        self._logprobs.extend(scored)
        return scored


class GeneratePresenter:
    """Shows markup as text when `does_parse` is off: raw requests, and all of generate on the native path."""

    def __init__(self, look: Look, prompt_tokens: list[int] | None) -> None:
        self._look = look
        self._context = prompt_tokens  # None = no context in the answer, as with `raw`
        self._calls = _Calls(is_native=look.path is ChatPath.NATIVE)
        self._response: list[str] = []
        self._thinking: list[str] = []
        self._logprobs: list[Logprob] = []

    def show(self, piece: Piece) -> GenerateLine | None:
        if self._context is not None:
            self._context.append(key_of(piece.text) % _VOCABULARY)
        if self._look.does_parse:
            match piece.kind:
                case PieceKind.MARK:
                    return None
                case PieceKind.THOUGHT:
                    self._thinking.append(piece.text)
                    return self._line("", thinking=piece.text, logprobs=self._scored(piece))
                case PieceKind.CALL:
                    call = self._calls.feed(piece.text)
                    return self._line("", tool_calls=[call]) if call is not None else None
                case PieceKind.TEXT:
                    pass
        self._response.append(piece.text)
        return self._line(piece.text, logprobs=self._scored(piece))

    def final(self, done_reason: str, metrics: Metrics) -> tuple[GenerateLine, ...]:
        return (self._done("", "", done_reason, metrics, []),)

    def whole(self, done_reason: str, metrics: Metrics | None) -> GenerateLine:
        response, thinking = "".join(self._response), "".join(self._thinking)
        if metrics is None:
            return self._line(response, thinking=thinking)
        return self._done(response, thinking, done_reason, metrics, self._logprobs)

    def _line(
        self,
        response: str,
        *,
        thinking: str = "",
        tool_calls: list[ToolCall] | None = None,
        logprobs: list[Logprob] | None = None,
    ) -> GenerateLine:
        created = go_time(time.time_ns())
        return GenerateLine(
            self._look.model, created, response, thinking, False, tool_calls=tool_calls or [], logprobs=logprobs or []
        )

    def _done(
        self, response: str, thinking: str, reason: str, metrics: Metrics, logprobs: list[Logprob]
    ) -> GenerateLine:
        return GenerateLine(
            self._look.model,
            go_time(time.time_ns()),
            response,
            thinking,
            True,
            reason,
            self._context or [],
            **msgspec.structs.asdict(metrics),
            logprobs=logprobs,
        )

    def _scored(self, piece: Piece) -> list[Logprob]:
        scored = logprobs_of(piece.text, self._look.top_logprobs)
        self._logprobs.extend(scored)
        return scored


def prompt_token_ids(prompt: str, count: int) -> list[int]:
    """Made-up ids for the deprecated `context`; stable for one prompt."""
    draws = Draws(key_of(prompt))
    return [draws.below(_VOCABULARY) for _ in range(count)]


def logprobs_of(token: str, top: int | None) -> list[Logprob]:
    """A made-up score that is stable for one token; other candidates come out less likely."""
    if top is None:
        return []
    draws = Draws(key_of(token, "logprob"))
    own = -draws.below(1_000_000) / 500_000
    candidates = [TopLogprob(token, own, list(token.encode()))] if top else []
    for rank in range(1, top):
        other = f" {string.ascii_lowercase[draws.below(26)]}{rank}"
        candidates.append(TopLogprob(other, own - rank - draws.below(1000) / 1000, list(other.encode())))
    return [Logprob(token, own, list(token.encode()), candidates)]


def _call_id(function: ToolFunction, *, is_native: bool) -> str:
    alphabet = string.ascii_letters + string.digits if is_native else string.ascii_lowercase + string.digits
    draws = Draws(key_of(time.time_ns(), function.index, function.name))
    text = "".join(alphabet[draws.below(len(alphabet))] for _ in range(32 if is_native else 8))
    return text if is_native else f"call_{text}"
