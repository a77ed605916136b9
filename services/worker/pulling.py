"""How far a pull is, from the lines that Ollama sends about it. Pure.

One line each about 60 ms; each layer has its own total, known when its turn comes (ollama-facts.md §1.10).
"""

from typing import Any

from libs.common.contracts.control import ModelAnswer, ModelWork


class Pull:
    """`answer` grows with every line; the bytes are those of all layers that have been named so far."""

    def __init__(self) -> None:
        self.answer = ModelAnswer(state=ModelWork.RUNNING, status="asked for")
        self.succeeded = False
        self._layers: dict[str, tuple[int, int]] = {}

    def feed(self, line: dict[str, Any]) -> None:
        status, digest = str(line.get("status", ""))[:200], line.get("digest")
        self.succeeded = status == "success"
        if isinstance(digest, str):
            before = self._layers.get(digest, (0, 0))
            # `completed` is left out while it is 0
            self._layers[digest] = (_count(line.get("completed")) or before[0], _count(line.get("total")) or before[1])
        completed, total = (sum(layer[n] for layer in self._layers.values()) for n in (0, 1))
        self.answer = ModelAnswer(state=ModelWork.RUNNING, status=status, completed=completed, total=total)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
