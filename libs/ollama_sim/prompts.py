"""Messages to prompt text, as the four kinds of chat path do it, and back: where in a raw prompt the answer begins."""

import re

import msgspec

from libs.ollama_sim.answers import EMPTY_THINK, THINK_CLOSE, THINK_OPEN, Beginning
from libs.ollama_sim.models import ChatPath, Model
from libs.ollama_sim.requests import Message

_CHATML_HEADER = "<|im_start|>assistant\n"
_CHATML_END = "<|im_end|>\n"
_BRACKET_HEADER = "[assistant]"
_CHATML_USER = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)
_BRACKET_USER = re.compile(r"\[user\](.*?)\n(?=\[|\Z)", re.DOTALL)

JINJA_TEMPLATE = """{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
_GO_OPEN = (
    "{{- range $i, $m := .Messages }}{{- $last := eq (len (slice $.Messages $i)) 1 }}[{{ .Role }}]{{ .Content }}"
    '{{ if not (and $last (eq .Role "assistant")) }}\n{{ end }}'
    '{{- if and $last (ne .Role "assistant") }}[assistant]{{ end }}{{- end }}'
)
_GO_CLOSED = "{{- range .Messages }}[{{ .Role }}]{{ .Content }}\n{{ end }}[assistant]"
TEMPLATES = {
    ChatPath.NATIVE: JINJA_TEMPLATE,
    ChatPath.TEMPLATE_OPEN: _GO_OPEN,
    ChatPath.TEMPLATE_CLOSED: _GO_CLOSED,
    ChatPath.PARSER: "{{ .Prompt }}",
}


class Prompt(msgspec.Struct, frozen=True):
    """A rendered prompt; the answer, or the part of it that is already there, begins at `start`."""

    text: str
    start: int
    beginning: Beginning = Beginning.ANSWER
    repeated: str = ""  # what the native path sends again before the new text
    is_marked: bool = True  # there is an assistant header in front of `start`
    is_headless: bool = False  # rendered without the assistant header, which an empty last message loses

    @property
    def rendered(self) -> str:
        return self.text.removesuffix(_CHATML_HEADER) if self.is_headless else self.text


def render_chat(model: Model, messages: tuple[Message, ...], *, tools_json: str, does_think: bool) -> Prompt:
    """The prompt of a chat request; a trailing assistant message is continued where the path does so."""
    last = messages[-1] if messages else None
    prefill = last if last is not None and last.role == "assistant" else None
    if prefill is None or model.path is ChatPath.TEMPLATE_CLOSED:
        return _generation(model, _history(model, messages, tools_json), does_think=does_think)
    base = _generation(model, _history(model, messages[:-1], tools_json), does_think=does_think)
    if model.path is ChatPath.TEMPLATE_OPEN:
        return msgspec.structs.replace(base, text=base.text + prefill.content)
    if model.path is ChatPath.PARSER:
        return _parser_prefill(base, prefill)
    if not prefill.content:
        return msgspec.structs.replace(base, is_headless=True)
    # The engine drops the thinking of the last message and puts an empty think block where it was.
    base = _generation(model, _history(model, messages[:-1], tools_json), does_think=False)
    repeated = prefill.content.lstrip() if tools_json else prefill.content
    return msgspec.structs.replace(base, text=base.text + prefill.content, repeated=repeated)


def read_raw(model: Model, text: str) -> Prompt:
    """A ready prompt as `raw` sends it: the answer begins after the last assistant header, if there is one."""
    header = _header(model)
    found = text.rfind(header)
    if found < 0:
        return Prompt(text, 0, is_marked=False)
    start = found + len(header)
    if not model.can_think:
        return Prompt(text, start)
    if text.startswith(EMPTY_THINK, start):
        return Prompt(text, start + len(EMPTY_THINK))
    if model.path is ChatPath.PARSER and text.startswith(THINK_OPEN, start):
        return Prompt(text, start + len(THINK_OPEN), Beginning.THOUGHT)
    return Prompt(text, start, Beginning.THINK_MARK)


def last_user_text(model: Model, prompt: str) -> str:
    """The last user message inside a rendered prompt; the whole text when it has no headers."""
    pattern = _BRACKET_USER if _is_bracketed(model) else _CHATML_USER
    found = pattern.findall(prompt)
    return str(found[-1]) if found else "" if _header(model) in prompt else prompt


def count_tokens(text: str) -> int:
    """Four bytes make a token; good enough for counts that only have to be plausible and stable."""
    return (len(text.encode("utf-8", "surrogatepass")) + 3) // 4


def _generation(model: Model, history: str, *, does_think: bool) -> Prompt:
    text = history + _header(model)
    if not model.can_think:
        return Prompt(text, len(text))
    if not does_think:
        text += EMPTY_THINK
        return Prompt(text, len(text))
    if model.path is ChatPath.PARSER:
        text += THINK_OPEN
        return Prompt(text, len(text), Beginning.THOUGHT)
    return Prompt(text, len(text), Beginning.THINK_MARK)


def _parser_prefill(base: Prompt, prefill: Message) -> Prompt:
    text = base.text
    if base.beginning is Beginning.THOUGHT:
        text += prefill.thinking
        if prefill.content:
            text += THINK_CLOSE
    return msgspec.structs.replace(base, text=text + prefill.content)


def _history(model: Model, messages: tuple[Message, ...], tools_json: str) -> str:
    if _is_bracketed(model):
        return "".join(f"[{message.role}]{message.content}\n" for message in messages)
    parts = [f"<|im_start|>system\nFunctions you can call:\n{tools_json}{_CHATML_END}"] if tools_json else []
    for message in messages:
        if message.role == "tool":
            content = f"user\n<tool_response>\n{message.content}\n</tool_response>"
        else:
            calls = "".join(f"\n<tool_call>\n{call}\n</tool_call>" for call in message.tool_calls)
            content = f"{message.role}\n{message.content}{calls}"
        parts.append(f"<|im_start|>{content}{_CHATML_END}")
    return "".join(parts)


def _header(model: Model) -> str:
    return _BRACKET_HEADER if _is_bracketed(model) else _CHATML_HEADER


def _is_bracketed(model: Model) -> bool:
    return model.path in {ChatPath.TEMPLATE_OPEN, ChatPath.TEMPLATE_CLOSED}
