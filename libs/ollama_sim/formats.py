"""The `format` field: free text, any JSON object, or an instance of a schema."""

from collections.abc import Callable
from typing import Any

import msgspec

from libs.ollama_sim.draws import Draws
from libs.ollama_sim.models import ChatPath
from libs.ollama_sim.refusals import Refusal, engine_refusal
from libs.ollama_sim.schema import BadSchema, instance


def json_writer(wanted: Any, path: ChatPath, *, is_chat: bool) -> Callable[[Draws], str] | None:
    """What writes the JSON text of the answer; None when the format is free."""
    if wanted is None:
        return None
    if wanted != "json" and not isinstance(wanted, dict):
        quoted = msgspec.json.encode(msgspec.json.encode(wanted).decode()).decode()
        raise Refusal(500, f'invalid format: {quoted}; expected "json" or a valid JSON Schema object', is_late=True)
    schema = {} if wanted == "json" else wanted
    try:
        instance(schema, Draws(0))
    except BadSchema as exc:
        raise engine_refusal(400, _explained(str(exc), path, is_chat=is_chat), "invalid_request_error") from exc

    def write(draws: Draws) -> str:
        return msgspec.json.encode(instance(schema, draws)).decode()

    return write


def _explained(reason: str, path: ChatPath, *, is_chat: bool) -> str:
    if is_chat and path is ChatPath.NATIVE:
        return f"Unable to generate parser for this template. Automatic parser generation failed: {reason}"
    return f"Field 'json_schema': \"json_schema\": JSON schema conversion failed:\n{reason}"
