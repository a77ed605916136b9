"""What the recordings of a real Ollama say, read without any of the worker's code."""

import json
from typing import Any, NamedTuple

from tests.ollama_sim.recordings import Recording, load, names

STREAMED = ("/api/chat", "/api/generate")


class Said(NamedTuple):
    """All that a body says, put together."""

    text: str
    thinking: str
    tool_calls: list[Any]
    logprobs: list[Any]


def path_of(recording: Recording) -> str:
    return recording.request.split(b" ", 2)[1].decode()


def _answers(recording: Recording) -> bool:
    return recording.response != b"" and path_of(recording) in (*STREAMED, "/api/embed")


ALL = {name: recording for name in names() if _answers(recording := load(name))}
STREAMS = [name for name, each in ALL.items() if each.reply.status == 200 and path_of(each) in STREAMED]
FAILED = [name for name, each in ALL.items() if each.reply.status != 200]
EMBEDDINGS = [name for name, each in ALL.items() if each.reply.status == 200 and path_of(each) == "/api/embed"]


def lines_of(recording: Recording) -> list[Any]:
    return [json.loads(line) for line in recording.reply.body.splitlines()]


def is_whole(name: str) -> bool:
    """The recording ends with its terminal marker."""
    return any(line.get("done") for line in lines_of(ALL[name]))


def said_in(recording: Recording) -> Said:
    text, thinking, calls, logprobs = "", "", [], []
    for line in lines_of(recording):
        holder = line.get("message", line)
        text += holder.get("content", "") or holder.get("response", "")
        thinking += holder.get("thinking", "")
        calls += holder.get("tool_calls", [])
        logprobs += line.get("logprobs", [])
    return Said(text, thinking, calls, logprobs)
