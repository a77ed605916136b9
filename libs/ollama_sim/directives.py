"""Orders to the simulated model inside the last user message, for tests that need a certain answer.

| directive                                | meaning                                                         |
|------------------------------------------|-----------------------------------------------------------------|
| `[[tokens=500]]`                         | the answer is 500 tokens long, unless `num_predict` cuts it      |
| `[[think=20]]`                           | the thought is 20 tokens long                                   |
| `[[tool=get_weather {"city":"Oslo"}]]`   | call this tool, if the request offers tools; may be repeated     |
| `[[say=Hello there.]]`                   | answer with exactly this text                                   |
"""

import re

import msgspec

_DIRECTIVE = re.compile(r"\[\[(tokens|think|tool|say)=(.*?)\]\](?!\])", re.DOTALL)


class ToolOrder(msgspec.Struct, frozen=True):
    """A call to make; arguments are kept as JSON text so that the key order stays."""

    name: str
    arguments: str = "{}"


class Directives(msgspec.Struct, frozen=True):
    tokens: int | None = None
    think_tokens: int | None = None
    tools: tuple[ToolOrder, ...] = ()
    say: str | None = None


def read_directives(text: str) -> Directives:
    """All directives of a message; what cannot be read is left as ordinary text, a repeated number counts once."""
    tokens: int | None = None
    think_tokens: int | None = None
    say: str | None = None
    tools: list[ToolOrder] = []
    for name, value in _DIRECTIVE.findall(text):
        if name == "tokens" and value.isdigit():
            tokens = int(value)
        elif name == "think" and value.isdigit():
            think_tokens = int(value)
        elif name == "say":
            say = value
        elif name == "tool" and (order := _tool_order(value)):
            tools.append(order)
    return Directives(tokens, think_tokens, tuple(tools), say)


def _tool_order(value: str) -> ToolOrder | None:
    name, _, arguments = value.strip().partition(" ")
    arguments = arguments.strip() or "{}"
    try:
        decoded = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return None
    return ToolOrder(name, arguments) if name and isinstance(decoded, dict) else None
