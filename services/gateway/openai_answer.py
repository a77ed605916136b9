"""Our events as OpenAI's chat completions, streamed and not. Pure. Layout as OpenAI's API reference and Ollama's own
`openai/openai.go` have it: role in the first chunk, thinking as `reasoning`, a finish chunk, then usage if asked for."""

import re
from typing import Any, NamedTuple

import msgspec

from libs.common.contracts.codec import encode
from libs.common.contracts.events import End, Event, Position, parse_position
from libs.common.contracts.faults import Code, Fault
from libs.common.folding import Answer
from libs.common.states import JobState
from services.gateway.dialects import openai_error

_FINISH = {"stop": "stop", "length": "length"}
DONE = b"[DONE]"


def fault_of(end: End) -> Fault | None:
    """Why there is no answer; None when there is one."""
    if end.state is JobState.SUCCEEDED:
        return None
    return end.fault or Fault(code=Code.INTERNAL, message=f"the job ended as {end.state}")


def usage(final: dict[str, Any]) -> dict[str, int]:
    prompt, completion = final.get("prompt_eval_count") or 0, final.get("eval_count") or 0
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Place(NamedTuple):
    """Where a reader of chunks is: behind the first `frames` frames of the event that begins at `position`.

    Only the end event becomes several frames. As text `<epoch>.<offset>`, the position of the log, or `…-<frames>`.
    """

    position: Position
    frames: int = 0

    def __str__(self) -> str:
        return f"{self.position}-{self.frames}" if self.frames else str(self.position)


_FRAMES = re.compile(r"(.*?)-([0-9])", re.ASCII)


def parse_place(text: str) -> Place:
    """The reverse of str(Place). Raises Malformed."""
    found = _FRAMES.fullmatch(text.strip())
    return Place(parse_position(found[1]), int(found[2])) if found else Place(parse_position(text))


def places(begin: Position, end: Position, frames: int) -> list[Place]:
    """The place after each of the frames of the event between `begin` and `end`."""
    return [*(Place(begin, n) for n in range(1, frames)), Place(end)]


class ChunkWriter:
    """Makes the chunks of one stream, the same at any gateway: all that goes in stands in the job's records and its log.

    `created` is in seconds since the epoch. For a reader that goes on, `begun` says whether there was an event before, and
    `calls` how many tool calls.
    """

    def __init__(self, job: str, model: str, created: int, *, include_usage: bool, begun: bool = False) -> None:
        self._head = {
            "id": completion_id(job),
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "system_fingerprint": "fp_ollama",
        }
        self._job = job
        self._include_usage = include_usage
        self.calls = 0
        self._begun = begun

    def chunks(self, event: Event) -> list[bytes]:
        """The data of the frames for one event of the log. A failure ends the stream without [DONE], as an error object."""
        if event.end is not None:
            fault = fault_of(event.end)
            return [encode_error(fault)] if fault else self._ending(event.end.final or {})
        delta: dict[str, Any] = {}
        if not self._begun:
            delta["role"] = "assistant"
            self._begun = True
        logprobs = None
        if event.thinking is not None:
            delta["reasoning"] = event.thinking
        if event.text is not None:
            delta["content"] = event.text
            if event.logprobs:
                logprobs = {"content": token_logprobs(msgspec.json.decode(event.logprobs))}
        if event.tool_call:
            delta["tool_calls"] = [{"index": self.calls, **tool_call(event.tool_call, self._job, self.calls)}]
            self.calls += 1
        return [self._chunk([{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}])]

    def _ending(self, final: dict[str, Any]) -> list[bytes]:
        delta = {} if self._begun else {"role": "assistant", "content": ""}
        reason = "tool_calls" if self.calls else _FINISH.get(final.get("done_reason", ""), "stop")
        frames = [self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}])]
        if self._include_usage:
            frames.append(self._chunk([], usage=usage(final)))
        return [*frames, DONE]

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return msgspec.json.encode(self._head | {"choices": choices} | more)


def completion(job: str, model: str, created: int, answer: Answer) -> dict[str, Any]:
    """The whole answer, for who did not ask for a stream. Only for jobs that succeeded."""
    assert answer.end is not None
    final = answer.end.final or {}
    message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.text)}
    if answer.thinking:
        message["reasoning"] = "".join(answer.thinking)
    if answer.tool_calls:
        message["tool_calls"] = [
            tool_call(msgspec.Raw(msgspec.json.encode(call)), job, n) for n, call in enumerate(answer.tool_calls)
        ]
    return {
        "id": completion_id(job),
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": "fp_ollama",
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": {"content": token_logprobs(answer.logprobs)} if answer.logprobs else None,
                "finish_reason": "tool_calls"
                if answer.tool_calls
                else _FINISH.get(final.get("done_reason", ""), "stop"),
            }
        ],
        "usage": usage(final),
    }


def completion_id(job: str) -> str:
    return f"chatcmpl-{job.removeprefix('job_')}"


def job_id(completion: str) -> str:
    """The reverse of completion_id; anything else as it is."""
    bare = completion.removeprefix("chatcmpl-")
    return completion if bare == completion else f"job_{bare}"


def tool_call(raw: msgspec.Raw, job: str, index: int) -> dict[str, Any]:
    """Ollama's arguments are an object, OpenAI's a string of JSON."""
    call = msgspec.json.decode(raw)
    function = call.get("function", {})
    arguments = msgspec.json.encode(function.get("arguments", {})).decode()
    return {
        "id": call.get("id") or f"call_{job.removeprefix('job_')[:8]}{index}",
        "type": "function",
        "function": {"name": function.get("name", ""), "arguments": arguments},
    }


def token_logprobs(items: list[Any]) -> list[Any]:
    """Ollama leaves `top_logprobs` away when none were asked for; OpenAI's type requires it."""
    return [{"bytes": None, "top_logprobs": [], **item} if isinstance(item, dict) else item for item in items]


def encode_error(fault: Fault) -> bytes:
    return encode(openai_error(fault))
