"""Why a request is refused, as the status and text of the real server."""

from typing import Any

from libs.ollama_sim.wire import encode


class Refusal(Exception):
    """Becomes the answer, unless the answer has already begun."""

    def __init__(self, status: int, text: str, *, is_late: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.is_late = is_late  # raised by the engine, when the real handler had already chosen to stream


def engine_refusal(code: int, message: str, kind: str, *, is_late: bool = True, **details: Any) -> Refusal:
    """The engine's own JSON as a string inside Ollama's."""
    inner = encode({"error": {"code": code, "message": message, "type": kind, **details}}).decode()
    return Refusal(code, inner, is_late=is_late)


def context_exceeded(prompt_tokens: int, num_ctx: int) -> Refusal:
    return engine_refusal(
        400,
        f"request ({prompt_tokens} tokens) exceeds the available context size ({num_ctx} tokens), try increasing it",
        "exceed_context_size_error",
        n_prompt_tokens=prompt_tokens,
        n_ctx=num_ctx,
    )
