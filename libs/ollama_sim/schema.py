"""A valid instance of a JSON schema, chosen by draws; enough of the language for structured output and tool arguments."""

from typing import Any

from libs.ollama_sim.draws import Draws

_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_WORDS = ("road", "river", "valley", "lantern", "garden", "señor", "market", "harbour")
_MAX_DEPTH = 16  # a recursive $ref ends here, in null


class BadSchema(ValueError):
    """The text is the engine's own, as it stands inside Ollama's 400."""


def instance(schema: Any, draws: Draws) -> Any:
    """An instance of the schema; `{}` or True means any JSON object, as for `format: "json"`."""
    return _instance(schema, schema, draws, 0)


def _instance(schema: Any, root: Any, draws: Draws, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None if depth > _MAX_DEPTH else _any_object(draws)
    if "$ref" in schema:
        return _instance(_resolve(schema["$ref"], root), root, draws, depth + 1)
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][draws.below(len(schema["enum"]))]
    for choice in ("anyOf", "oneOf"):
        if isinstance(schema.get(choice), list) and schema[choice]:
            return _instance(schema[choice][0], root, draws, depth + 1)
    if isinstance(schema.get("allOf"), list) and schema["allOf"]:
        merged = {key: value for part in schema["allOf"] if isinstance(part, dict) for key, value in part.items()}
        return _instance(merged, root, draws, depth + 1)
    return _typed(_type_of(schema), schema, root, draws, depth)


def _typed(kind: str, schema: dict[str, Any], root: Any, draws: Draws, depth: int) -> Any:
    match kind:
        case "object":
            properties = schema.get("properties")
            if not isinstance(properties, dict):
                return _any_object(draws) if depth == 0 else {}
            return {name: _instance(part, root, draws, depth + 1) for name, part in properties.items()}
        case "array":
            length = max(int(schema.get("minItems", 0)), min(2, int(schema.get("maxItems", 2))))
            return [_instance(schema.get("items", {"type": "string"}), root, draws, depth + 1) for _ in range(length)]
        case "string":
            return _string(schema, draws)
        case "integer" | "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
            high = schema.get("maximum", schema.get("exclusiveMaximum", low + 20))
            inner = low + 1 if "exclusiveMinimum" in schema else low
            return int(inner) + draws.below(max(1, int(high - inner)))
        case "boolean":
            return draws.below(2) == 1
        case _:
            return None


def _string(schema: dict[str, Any], draws: Draws) -> str:
    formats = {"date": "2026-01-31", "date-time": "2026-01-31T12:00:00Z", "time": "12:00:00", "email": "a@example.org"}
    if schema.get("format") in formats:
        return formats[schema["format"]]
    text = _WORDS[draws.below(len(_WORDS))]
    text = text.ljust(int(schema.get("minLength", 0)), "a")
    return text[: int(schema["maxLength"])] if "maxLength" in schema else text


def _type_of(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list) and kind:
        kind = kind[0]
    if kind is None:
        return "object"
    if kind not in _TYPES:
        raise BadSchema(f"JSON schema error at #: unrecognized type {kind}")
    return str(kind)


def _resolve(reference: Any, root: Any) -> Any:
    target = root
    for part in str(reference).removeprefix("#").strip("/").split("/"):
        if not part:
            continue
        if not isinstance(target, dict) or part not in target:
            raise BadSchema(f"JSON schema error at #: cannot resolve $ref {reference}, {part} not found")
        target = target[part]
    return target


def _any_object(draws: Draws) -> dict[str, Any]:
    word = _WORDS[draws.below(len(_WORDS))]
    return {"name": word, "count": draws.below(20), "open": draws.below(2) == 1}
