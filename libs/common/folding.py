"""A job's result: a pure fold of its token log into Ollama's final object, with the whole text in it (DESIGN §5)."""

from typing import Any

import msgspec

from libs.common.contracts.events import End, Event, decode_event
from libs.common.contracts.requests import Kind


class Answer:
    """Collects events; any order of text and thinking that Ollama sends."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.thinking: list[str] = []
        self.tool_calls: list[Any] = []
        self.logprobs: list[Any] = []
        self.data: Any = None
        self.end: End | None = None

    def add(self, event: Event) -> None:
        if event.text is not None:
            self.text.append(event.text)
        if event.thinking is not None:
            self.thinking.append(event.thinking)
        if event.tool_call:
            self.tool_calls.append(msgspec.json.decode(event.tool_call))
        if event.logprobs:
            self.logprobs += msgspec.json.decode(event.logprobs)
        if event.data:
            self.data = msgspec.json.decode(event.data)
        if event.end is not None:
            self.end = event.end

    def result(self, kind: Kind) -> dict[str, Any] | None:
        """None when the log has no ending that Ollama gave (cancelled, failed)."""
        if self.end is None or self.end.final is None:
            return None
        result = dict(self.end.final)
        if kind is Kind.EMBED:
            return result | {"embeddings": self.data}
        text, thinking = "".join(self.text), "".join(self.thinking)
        if kind is Kind.GENERATE:
            result["response"] = text
            target = result
        else:
            target = {"role": "assistant", "content": text}
            result["message"] = target
        if thinking:
            target["thinking"] = thinking
        if self.tool_calls:
            target["tool_calls"] = self.tool_calls
        if self.logprobs:
            result["logprobs"] = self.logprobs
        return result


def fold(log: bytes) -> Answer:
    """Raises Malformed."""
    answer = Answer()
    for raw in log.split(b"\n")[:-1]:  # not splitlines, which cuts at a CR, too
        answer.add(decode_event(raw))
    return answer
