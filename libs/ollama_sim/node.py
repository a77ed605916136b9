"""One simulated node: its models, its scheduler, its faults, and what has happened so far."""

import time
from collections import deque

import msgspec

from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.counters import Counters
from libs.ollama_sim.fault_book import FaultBook
from libs.ollama_sim.models import Model
from libs.ollama_sim.names import ModelName
from libs.ollama_sim.pace import Pace
from libs.ollama_sim.scheduler import Scheduler

_REMEMBERED = 64
_EPOCH_NS = 1_767_225_600 * 10**9  # 2026-01-01, the day the simulated models were installed


class SeenRequest(msgspec.Struct, frozen=True):
    """The shape of a request; never its text."""

    route: str
    model: str
    keys: tuple[str, ...]
    option_keys: tuple[str, ...]
    is_stream: bool


class Node:
    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.pace = Pace(config.time_scale, config.is_instant)
        self.counters = Counters()
        self.faults = FaultBook(config.faults, config.seed)
        self.scheduler = Scheduler(config, self.pace, self.faults, self.counters)
        self.seen: deque[SeenRequest] = deque(maxlen=_REMEMBERED)
        self.started_ns = time.time_ns()
        self._models: dict[str, Model] = {}
        for index, model in enumerate(config.models):
            self.install(msgspec.structs.replace(model, modified_ns=_EPOCH_NS - index * 60 * 10**9))

    @property
    def models(self) -> list[Model]:
        """Newest first, as `/api/tags` lists them."""
        return sorted(self._models.values(), key=lambda model: -model.modified_ns)

    def find(self, name: ModelName) -> Model | None:
        return self._models.get(name.key)

    def install(self, model: Model) -> None:
        self._models[model.name.key] = model

    def delete(self, model: Model) -> None:
        """Take it out of the list; a runner that serves it stays until it expires."""
        self._models.pop(model.name.key, None)

    def remember(
        self, route: str, model: str, keys: tuple[str, ...], options: dict[str, object], is_stream: bool
    ) -> None:
        self.seen.append(SeenRequest(route, model, keys, tuple(options), is_stream))
