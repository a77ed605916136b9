"""The first chat of a fresh stack, streamed to the terminal: through gateway, queue, router, worker and node, and back."""

import asyncio
import time
from collections.abc import Iterable

from libs.cli.conversation import answer
from libs.cli.failures import CommandFailed
from libs.cli.http import connect
from libs.cli.up.narrator import Narrator
from libs.common.contracts.nodes import canonical_model

QUESTION = "In one sentence: what does an arriero do?"
MAX_TOKENS = 80
PATIENCE_S = 120.0  # a large model on a slow disk
SEEN_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.1


async def listed_models(gateway: str, api_key: str, expected: Iterable[str]) -> list[str]:
    """What the gateway lists, as soon as it knows all of `expected`, or after ten seconds."""
    wanted = set(expected)  # canonical names
    until = time.monotonic() + SEEN_WITHIN_S
    async with connect(gateway, api_key) as http:
        while True:
            try:
                answered = await http.call("GET", "/v1/models")
            except CommandFailed:
                if time.monotonic() > until:
                    raise
            else:
                found = [model["id"] for model in answered["data"]]
                if (found and wanted <= {canonical_model(name) for name in found}) or time.monotonic() > until:
                    return found
            await asyncio.sleep(_LOOK_EVERY_S)


async def first_answer(narrator: Narrator, gateway: str, api_key: str, model: str | None, models: list[str]) -> None:
    """A failure is told and changes nothing: the stack runs."""
    if model is None:
        narrator.warn("answer.skipped", "No node has a chat model, so there is no first answer.", models=models)
        return
    narrator.say("answer.asked", f"\n{model} ▸ {QUESTION}", style="bold", model=model, question=QUESTION)
    began = time.monotonic()
    first_s: float | None = None
    try:
        async with asyncio.timeout(PATIENCE_S), connect(gateway, api_key) as http:
            async for piece in answer(http, model, [{"role": "user", "content": QUESTION}], max_tokens=MAX_TOKENS):
                if first_s is None:
                    first_s = time.monotonic() - began
                narrator.piece(piece.text, thinking=piece.thinking)
    except TimeoutError:
        narrator.warn(
            "answer.failed", f"The first answer did not end within {PATIENCE_S:g} s; the stack runs all the same."
        )
    except CommandFailed as error:
        narrator.warn(
            "answer.failed", f"The first answer failed: {error}. The stack runs all the same.", code=error.code
        )
    else:
        took = time.monotonic() - began
        if first_s is None:
            narrator.warn("answer.empty", "The first answer came without a word.", model=model)
            return
        narrator.say(
            "answer.ended",
            f"(first token after {first_s:.2f} s, all of it after {took:.2f} s)",
            style="dim",
            first_token_s=round(first_s, 3),
            total_s=round(took, 3),
        )
