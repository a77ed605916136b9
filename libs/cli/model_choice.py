"""Which model to talk to when nobody said."""

import re
from collections.abc import Iterable, Mapping

_EMBEDDING = re.compile(r"embed|minilm|(^|[/_-])(bge|gte|e5)([._:-]|$)|rerank", re.IGNORECASE)
_PARAMETERS = re.compile(r"(?<![a-z0-9.])(?:\d+x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)


def is_embedding(model: str) -> bool:
    return bool(_EMBEDDING.search(model))


def billions(model: str) -> float | None:
    """Parameters as the name tells them: `llama3.2:3b` → 3.0, `smollm2:135m` → 0.135."""
    found = _PARAMETERS.search(model.partition("/")[2] or model)
    return float(found[1]) / (1000 if found[2].lower() == "m" else 1) if found else None


def small_chat_model(models: Iterable[str], sizes: Mapping[str, int] | None = None) -> str | None:
    """The smallest one that chats, by bytes where `sizes` has them, else by its name; None when there is none."""
    known = sizes or {}

    def weight(model: str) -> tuple[float, str]:
        by_name = billions(model)
        size = known.get(model)
        # 4-bit weights and some overhead: about 0.65 bytes per parameter.
        return (size / 0.65e9 if size else by_name if by_name is not None else 1000.0, model)

    return min((model for model in models if not is_embedding(model)), key=weight, default=None)
