"""What operators decided about models and nodes: the bucket `models`, followed and written with compare-and-set."""

from collections.abc import Callable

import structlog

from libs.common.bus.buckets import Bucket, value_of
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Conflict
from libs.common.bus.follower import Follower
from libs.common.bus.stored import Stored
from libs.common.contracts.catalog import (
    ModelPolicy,
    NodePolicy,
    decode_model_policy,
    decode_node_policy,
    model_record,
    node_record,
)
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.faults import Code, failed
from libs.common.contracts.nodes import canonical_model
from libs.common.contracts.streams import MODELS, key_subject

log = structlog.get_logger()

TRIES = 10  # against others who write the same record at the same time


class Catalog:
    """`models` by canonical name, `nodes` by name: those with a record."""

    def __init__(self, bus: Bus) -> None:
        self.models: dict[str, ModelPolicy] = {}
        self.nodes: dict[str, NodePolicy] = {}
        self._bucket = Bucket(bus, MODELS)
        self._at: dict[str, tuple[str, str]] = {}  # (kind, name) of each key
        self.follower = Follower(
            bus, self._bucket.stream, [key_subject(MODELS, ">")], self._fold, on_reset=self._forget_all
        )

    def model(self, name: str) -> ModelPolicy:
        canonical = canonical_model(name)
        return self.models.get(canonical) or ModelPolicy(name=canonical)

    def draining(self, node: str) -> bool:
        return node in self.nodes and self.nodes[node].draining

    async def change_model(self, name: str, change: Callable[[ModelPolicy], ModelPolicy]) -> ModelPolicy:
        """`change` gets what stands there and may be called several times. Raises Failed (UNAVAILABLE) and BusError."""
        canonical = canonical_model(name)
        key = model_record(canonical)
        for _ in range(TRIES):
            value, revision = await self._bucket.get(key)
            before = ModelPolicy(name=canonical) if value is None else decode_model_policy(value)
            after = change(before)
            if value is not None and after == before:
                return after
            try:
                await self._bucket.put(key, encode(after), expected=revision)
                return after
            except Conflict:
                continue
        raise failed(Code.UNAVAILABLE, "others change the same policy all the time; try again", retry_after_s=1)

    async def forget_model(self, name: str) -> bool:
        """Back to the defaults; False when there was no record. Raises Failed (UNAVAILABLE) and BusError."""
        key = model_record(name)
        for _ in range(TRIES):
            value, revision = await self._bucket.get(key)
            if value is None:
                return False
            try:
                await self._bucket.delete(key, expected=revision)
                return True
            except Conflict:
                continue
        raise failed(Code.UNAVAILABLE, "others change the same policy all the time; try again", retry_after_s=1)

    async def set_node(self, policy: NodePolicy) -> None:
        """Raises Failed (UNAVAILABLE) and BusError."""
        key = node_record(policy.name)
        for _ in range(TRIES):
            _, revision = await self._bucket.get(key)
            try:
                await self._bucket.put(key, encode(policy), expected=revision)
                return
            except Conflict:
                continue
        raise failed(Code.UNAVAILABLE, "others change the same policy all the time; try again", retry_after_s=1)

    def _forget_all(self) -> None:
        for table in (self.models, self.nodes, self._at):
            table.clear()

    def _fold(self, stored: Stored) -> None:
        key, value = self._bucket.key_of(stored.subject), value_of(stored)
        kind, name = self._at.pop(key, ("", ""))
        if kind:
            (self.models if kind == "model" else self.nodes).pop(name, None)
        if value is None:
            return
        try:
            if key.startswith("model."):
                model = decode_model_policy(value)
                self.models[model.name], self._at[key] = model, ("model", model.name)
            elif key.startswith("node."):
                node = decode_node_policy(value)
                self.nodes[node.name], self._at[key] = node, ("node", node.name)
        except Malformed as error:
            log.warning("policy.malformed", key=key, error=str(error))
