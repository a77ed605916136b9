"""`arriero chat`: one question, or a conversation."""

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from libs.cli.failures import CommandFailed
from libs.cli.model_choice import is_embedding, small_chat_model
from libs.cli.output import Json, show

Message = dict[str, Any]


def chat(
    words: Annotated[list[str] | None, typer.Argument(metavar="[MODEL] [PROMPT]", show_default=False)] = None,
    system: Annotated[str, typer.Option(help="A system message to begin with.")] = "",
    as_json: Json = False,
) -> None:
    """Ask a model and see the answer as it comes. Without a prompt: a conversation, or the prompt from a pipe.

    \b
    Examples:
      arriero chat llama3.2:3b "Why are llamas good walkers?"
      arriero chat "Why are llamas good walkers?"       the smallest chat model there is
      arriero chat qwen3:4b                             a conversation; Ctrl-D ends it
      git diff | arriero chat llama3.2:3b               the prompt from a pipe
    """
    from libs.cli.whereabouts import gateway

    where = gateway()
    models = asyncio.run(_models(where.url, where.api_key))
    model, prompt = read_words(words or [], models)
    talk = Talk(where.url, where.api_key, model, system)
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise CommandFailed("there is no prompt: give one, or pipe one in", code="usage")
    if prompt is None:
        if as_json:
            raise CommandFailed("a conversation has no JSON form: give a prompt with --json", code="usage")
        return _converse(talk)
    began = time.monotonic()
    said = asyncio.run(talk.ask(prompt, aloud=not as_json))
    if as_json:
        show({"model": model, **said, "total_s": round(time.monotonic() - began, 3)}, "")
    return None


def read_words(words: Sequence[str], models: Sequence[str]) -> tuple[str, str | None]:
    """(model, prompt) of the arguments. A single one is the model of that name, or a prompt when it is more than a word."""
    chosen = small_chat_model(models)
    listed = ", ".join(model for model in models if not is_embedding(model)) or "none at the moment"
    match list(words):
        case []:
            model, prompt = chosen, None
        case [one] if one in models or f"{one}:latest" in models:
            model, prompt = one, None
        case [one] if len(one.split()) > 1:
            model, prompt = chosen, one
        case [one]:
            raise CommandFailed(f"there is no model {one!r}; there are: {listed}", code="model_not_found")
        case [one, *rest]:
            model, prompt = one, " ".join(rest)
        case _:
            raise AssertionError("a list is empty or has a first element")
    if model is None:
        raise CommandFailed(
            "no node has a chat model: `ollama pull llama3.2:3b` on a node gives it one", code="model_not_found"
        )
    return model, prompt


class Talk:
    """A conversation so far."""

    def __init__(self, url: str, api_key: str, model: str, system: str) -> None:
        self.model = model
        self._url = url
        self._api_key = api_key
        self._messages: list[Message] = [{"role": "system", "content": system}] if system else []

    async def ask(self, prompt: str, *, aloud: bool) -> dict[str, Any]:
        """Prints the answer while it comes, if `aloud`. What failed or was cut off is no part of the conversation."""
        from libs.cli.conversation import answer
        from libs.cli.http import connect
        from libs.cli.up.narrator import Terminal

        terminal = Terminal() if aloud else None
        asked: list[Message] = [*self._messages, {"role": "user", "content": prompt}]
        text, thinking = "", ""
        first_s: float | None = None
        began = time.monotonic()
        async with connect(self._url, self._api_key) as http:
            async for piece in answer(http, self.model, asked):
                first_s = time.monotonic() - began if first_s is None else first_s
                if terminal:
                    if thinking and not text and not piece.thinking:
                        terminal.piece("\n\n")
                    terminal.piece(piece.text, thinking=piece.thinking)
                if piece.thinking:
                    thinking += piece.text
                else:
                    text += piece.text
        if terminal and not text.endswith("\n"):
            terminal.piece("\n")
        self._messages = [*asked, {"role": "assistant", "content": text}]
        return {"content": text, "thinking": thinking or None, "first_token_s": first_s and round(first_s, 3)}


def _converse(talk: Talk) -> None:
    """Ctrl-C ends an answer, Ctrl-D the conversation."""
    print(f"{talk.model}; Ctrl-C stops an answer, Ctrl-D ends.")
    while True:
        try:
            prompt = input("\n▸ ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not prompt:
            continue
        try:
            asyncio.run(talk.ask(prompt, aloud=True))
        except KeyboardInterrupt:
            print("\n(stopped)")
        except CommandFailed as failure:
            print(f"\narriero: {failure}", file=sys.stderr)


async def _models(url: str, api_key: str) -> list[str]:
    from libs.cli.http import connect

    async with connect(url, api_key) as http:
        answered = await http.call("GET", "/v1/models")
    return [model["id"] for model in answered.get("data", [])]
