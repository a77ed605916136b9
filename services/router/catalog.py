"""What operators decided about models and nodes, folded from the bucket `models`. Pure."""

from libs.common.contracts.catalog import ModelPolicy, NodePolicy, decode_model_policy, decode_node_policy
from libs.common.contracts.nodes import canonical_model


class Catalog:
    def __init__(self) -> None:
        self.models: dict[str, ModelPolicy] = {}  # by canonical name
        self.nodes: dict[str, NodePolicy] = {}
        self._records: dict[str, str] = {}  # key of the bucket → name
        self.version = 0  # another one after each change

    def clear(self) -> None:
        self.version += 1
        for table in (self.models, self.nodes, self._records):
            table.clear()

    def fold(self, key: str, value: bytes) -> None:
        """One record of the bucket; an empty value: it was deleted. Raises Malformed, and then nothing has changed."""
        kind = key.partition(".")[0]
        self.version += 1
        if not value:
            name = self._records.pop(key, None)
            if name is not None:
                (self.models if kind == "model" else self.nodes).pop(name, None)
        elif kind == "model":
            model = decode_model_policy(value)
            name = canonical_model(model.name)
            self.models[name], self._records[key] = model, name
        elif kind == "node":
            node = decode_node_policy(value)
            self.nodes[node.name], self._records[key] = node, node.name

    def model(self, name: str) -> ModelPolicy:
        return self.models.get(name) or ModelPolicy(name=name)

    def draining(self, node: str) -> bool:
        known = self.nodes.get(node)
        return known is not None and known.draining

    def pinned(self, model: str, node: str) -> bool:
        known = self.models.get(model)
        return known is not None and node in known.pins
