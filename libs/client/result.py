"""What a job came to. Pure."""

from dataclasses import dataclass, field
from typing import Any

from libs.client.errors import Fault, JobFailed, ending_of
from libs.client.events import Data, End, StreamEvent, Text, Thinking, ToolCall


@dataclass(frozen=True, slots=True)
class Result:
    """`final` is Ollama's final object. `usage` and `timings` are as `GET /jobs/{id}` has them; None where the result is too
    large for a message and was read piece by piece."""

    id: str
    text: str = ""
    thinking: str = ""
    tool_calls: list[Any] = field(default_factory=list)
    embeddings: Any = None
    final: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None


def result_of(view: dict[str, Any]) -> Result:
    """Of a job that has ended, as gateways show it. Raises JobFailed."""
    if view["state"] != "succeeded":
        raise _failure_of(view)
    final = view.get("result") or {}
    message = final.get("message") or final  # chat has a message, generate says the same beside `response`
    return Result(
        id=view["id"],
        text=message.get("content") or final.get("response") or "",
        thinking=message.get("thinking") or "",
        tool_calls=message.get("tool_calls") or [],
        embeddings=final.get("embeddings"),
        final=final,
        usage=view.get("usage"),
        timings=view.get("timings"),
    )


def _failure_of(view: dict[str, Any]) -> JobFailed:
    error = view.get("error") or {}
    fault = Fault(**{name: error[name] for name in Fault.__struct_fields__ if name in error}) if error else None
    return ending_of(view["state"], fault)


def gathered(job: str, events: list[StreamEvent], end: End) -> Result:
    """From the whole log, where the gateways' own answer is too large for a message."""
    return Result(
        id=job,
        text="".join(event.text for event in events if isinstance(event, Text)),
        thinking="".join(event.text for event in events if isinstance(event, Thinking)),
        tool_calls=[event.call for event in events if isinstance(event, ToolCall)],
        embeddings=next((event.data for event in events if isinstance(event, Data)), None),
        final=end.final or {},
    )
