"""Going on with an answer that another node began: what to send, and how to join what comes to what was shown. Pure.

Measured on a real Ollama (ollama-facts.md §1.13): a trailing assistant message is continued on most template paths, and on
the native path its text is repeated in the first line, which must be cut off; the rendered prompt with the text behind it,
sent raw, continues nearly everywhere but is not parsed (no tools, no grammar), so think markup is written and read here.
What fits neither is not continued: generating over text that was shown never happens (DESIGN §4).
"""

from typing import Any, NamedTuple, TypeAlias

import msgspec

from libs.common.contracts.codec import NO_JSON
from libs.common.contracts.events import Event, decode_event
from libs.common.contracts.requests import Kind, Request

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


class Carried(NamedTuple):
    """What was shown. `tokens`: each event of a stream is one token, seldom two (ollama-facts.md §1.2)."""

    text: str
    thinking: str
    tokens: int
    plain: bool  # nothing but text and thinking


class Trailing(NamedTuple):
    """Send the conversation with the text as a last assistant message."""

    repeats: bool  # the native path says the text again


class Raw(NamedTuple):
    """Send this prompt raw; `thinking`: it ends inside the thought."""

    prompt: str
    thinking: bool


class Spent(NamedTuple):
    """The limit of tokens had been reached: the answer is complete."""


class Cannot(NamedTuple):
    reason: str


class Render(NamedTuple):
    """Ask the node first how it renders this request (`_debug_render_only`)."""

    trailing: bool


Plan: TypeAlias = Trailing | Raw | Spent | Cannot


def read_carried(log: bytes) -> Carried:
    """Raises Malformed."""
    text, thinking, tokens, plain = [], [], 0, True
    for raw in log.splitlines():
        event = decode_event(raw)
        text.append(event.text or "")
        thinking.append(event.thinking or "")
        tokens += 1
        plain = plain and not event.tool_call and not event.data and event.end is None
    return Carried("".join(text), "".join(thinking), tokens, plain)


def left_to_generate(request: Request, carried: Carried) -> int | None:
    """What remains of num_predict; None when the request set no limit."""
    limit = (request.options or {}).get("num_predict")
    return limit - carried.tokens if isinstance(limit, int) and limit > 0 else None


def first_step(kind: Kind, request: Request, carried: Carried) -> Render | Plan:
    if kind is Kind.EMBED or not carried.plain:
        return Cannot("a tool call or data had been shown")
    left = left_to_generate(request, carried)
    if left is not None and left <= 0:
        return Spent()
    if kind is Kind.GENERATE:
        if request.suffix:
            return Cannot("the request has a suffix")
        if request.raw:
            return Raw((request.prompt or "") + carried.text, thinking=False)
        return Render(trailing=False)
    return Render(trailing=not carried.thinking)


def plan_trailing(request: Request, carried: Carried, rendered: str, *, native: bool) -> Plan | Render:
    """After rendering with the trailing message: does the template leave it open?"""
    is_open = rendered.endswith((carried.text, carried.text.lstrip()))
    if not is_open or not carried.text:
        return Render(trailing=False)
    if request.format != NO_JSON and not native:
        return Cannot("the grammar of `format` would begin again")
    return Trailing(repeats=native)


def plan_raw(request: Request, carried: Carried, rendered: str) -> Plan:
    """After rendering without it: write the prompt as the model would have it at the cut."""
    if request.tools or request.format != NO_JSON:
        return Cannot("tools and format need a parser, which raw prompts have not")
    if request.images or any("images" in message for message in request.messages or ()):
        return Cannot("images cannot be sent with a raw prompt")
    if not carried.thinking:
        return Raw(rendered + carried.text, thinking=False)
    opened = rendered if rendered.rstrip().endswith(THINK_OPEN) else f"{rendered}{THINK_OPEN}\n"
    if not carried.text:
        return Raw(opened + carried.thinking, thinking=True)
    return Raw(f"{opened}{carried.thinking}\n{THINK_CLOSE}\n\n{carried.text}", thinking=False)


def trailing_request(request: Request, carried: Carried) -> Request:
    messages = [*(request.messages or ()), {"role": "assistant", "content": carried.text}]
    return msgspec.structs.replace(request, messages=messages, options=_reduced(request, carried))


def raw_request(request: Request, carried: Carried, prompt: str) -> Request:
    """Of kind generate, whatever the job's kind is."""
    return Request(
        model=request.model,
        prompt=prompt,
        raw=True,
        options=_reduced(request, carried),
        truncate=request.truncate,
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs,
    )


def _reduced(request: Request, carried: Carried) -> dict[str, Any] | None:
    left = left_to_generate(request, carried)
    return request.options if left is None else {**(request.options or {}), "num_predict": left}


class Joint:
    """Makes one answer of two: cuts off a repeat, reads think markup of a raw stream, and puts the counts together."""

    def __init__(self, plan: Trailing | Raw, carried: Carried) -> None:
        self._carried = carried
        self._repeat = carried.text if isinstance(plan, Trailing) else ""
        self._repeats = isinstance(plan, Trailing) and plan.repeats
        self._raw = isinstance(plan, Raw)
        self._thinking = isinstance(plan, Raw) and plan.thinking
        self._held = ""  # of a thought: perhaps the beginning of its end mark
        self._after_thought = False

    def join(self, events: list[Event]) -> list[Event]:
        joined: list[Event] = []
        for event in events:
            joined += self._join(event)
        return joined

    def end(self, final: dict[str, Any]) -> tuple[list[Event], dict[str, Any]]:
        """What was held back, and Ollama's final object with the counts of the whole answer."""
        held = [Event(thinking=self._held)] if self._held else []
        tokens = self._carried.tokens
        whole = {name: value for name, value in final.items() if name != "context" or not self._raw}
        whole["eval_count"] = (final.get("eval_count") or 0) + tokens
        if isinstance(final.get("prompt_eval_count"), int):
            whole["prompt_eval_count"] = max(1, final["prompt_eval_count"] - tokens)
        return held, whole

    def _join(self, event: Event) -> list[Event]:
        if event.text is None:
            return [event]
        if self._repeat:
            event = self._without_repeat(event)
        if self._thinking:
            return self._thought(event.text or "")
        if self._after_thought and event.text:
            event = Event(text=event.text.lstrip(), logprobs=event.logprobs)
            self._after_thought = not event.text
        return [event] if event.text else []

    def _without_repeat(self, event: Event) -> Event:
        """Only the first line can hold the repeat; a partial text of one token is decided by the template's path."""
        text, repeat, self._repeat = event.text or "", self._repeat, ""
        for known in (repeat, repeat.lstrip()):
            # On other paths a first line is one token: it cannot be the whole partial text unless that is as short.
            if known and text.startswith(known) and (self._repeats or self._carried.tokens > 2):
                return Event(text=text[len(known) :], logprobs=event.logprobs)
        return event

    def _thought(self, text: str) -> list[Event]:
        whole = self._held + text
        thought, mark, rest = whole.partition(THINK_CLOSE)
        if mark:
            self._thinking, self._held, self._after_thought = False, "", True
            rest = rest.lstrip()
            self._after_thought = not rest
            thought = thought.rstrip()
            return [*([Event(thinking=thought)] if thought else []), *([Event(text=rest)] if rest else [])]
        keep = max((n for n in range(1, len(THINK_CLOSE)) if whole.endswith(THINK_CLOSE[:n])), default=0)
        # White space before the end mark belongs to the mark: it is held back, too.
        shown = whole[: len(whole) - keep].rstrip()
        self._held = whole[len(shown) :]
        return [Event(thinking=shown)] if shown else []
