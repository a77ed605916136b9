"""The described fleet: nodes and models, from TOML.

```toml
[[node]]
name = "gpu1"
vram_gb = 24
slots = 2          # answers at once, shared by all models in memory
decode_tps = 60    # tokens per second of one answer, of a model of 4.5 GB
prefill_tps = 1500 # prompt tokens per second, of a model of 4.5 GB
load_gbps = 2.0    # gigabytes per second, from disk into memory

[[model]]
name = "llama3.1:8b"
size_gb = 4.9      # in memory; every model is on every node's disk
```
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from services.router.simulate.failures import BadInput

REFERENCE_GB = 4.5  # the size of the model that rates are given for; decode and prefill seconds grow with the size
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    vram_gb: Positive
    slots: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    decode_tps: Positive
    prefill_tps: Positive
    load_gbps: Positive

    def prefill_s(self, tokens: int, size_gb: float) -> float:
        return tokens / self.prefill_tps * (size_gb / REFERENCE_GB)

    def decode_s(self, tokens: int, size_gb: float) -> float:
        return tokens / self.decode_tps * (size_gb / REFERENCE_GB)

    def load_s(self, size_gb: float) -> float:
        return size_gb / self.load_gbps


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    size_gb: Positive


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    nodes: tuple[NodeSpec, ...]
    models: Mapping[str, ModelSpec]  # by name, in the order of the file

    def with_nodes(self, added: Iterable[NodeSpec]) -> "Fleet":
        """Raises BadInput on a name that is taken."""
        nodes = (*self.nodes, *added)
        _refuse_twins("--add-node", "node", [node.name for node in nodes])
        return Fleet(nodes=nodes, models=self.models)


Spec = TypeVar("Spec", NodeSpec, ModelSpec)


def read_fleet(path: Path) -> Fleet:
    """Raises BadInput."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is no TOML: {error}") from error
    for key in content:
        if key not in ("node", "model"):
            raise BadInput(f"{path}: {key!r} is not known; a fleet has [[node]] and [[model]] tables")
    nodes = _tables(path, content, "node", NodeSpec)
    models = _tables(path, content, "model", ModelSpec)
    return Fleet(nodes=tuple(nodes), models={model.name: model for model in models})


def parse_node(text: str, fleet: Fleet) -> NodeSpec:
    """`name=x,vram_gb=24,…` as in --add-node. What is left out is taken from the fleet's node of the nearest VRAM."""
    given: dict[str, Any] = {}
    for part in text.split(","):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or key not in NodeSpec.__struct_fields__:
            known = ", ".join(NodeSpec.__struct_fields__)
            raise BadInput(f"--add-node: {part.strip()!r} is not key=value with a key of {known}")
        if key in given:
            raise BadInput(f"--add-node: {key} is given twice")
        given[key] = value
    for key in ("name", "vram_gb"):
        if key not in given:
            raise BadInput(f"--add-node {text!r}: {key} is missing")
    try:
        vram = float(given["vram_gb"])
    except ValueError:
        raise BadInput(f"--add-node {text!r}: vram_gb is not a number") from None
    like = min(fleet.nodes, key=lambda node: (abs(node.vram_gb - vram), node.name))
    try:
        return msgspec.convert({**msgspec.structs.asdict(like), **given}, NodeSpec, strict=False)
    except msgspec.ValidationError as error:
        raise BadInput(f"--add-node {text!r}: {_plain(error)}") from error


def check_models_fit(fleet: Fleet, wanted: Iterable[str], source: str) -> None:
    """Every model that jobs want is in the fleet file and fits at least one node. Raises BadInput."""
    largest = max(node.vram_gb for node in fleet.nodes)
    for name in sorted(set(wanted)):
        model = fleet.models.get(name)
        if model is None:
            raise BadInput(f"{source} wants the model {name!r}, which the fleet file has no [[model]] for")
        if model.size_gb > largest:
            raise BadInput(
                f"{source} wants the model {name!r}, which fits no node: it takes {model.size_gb:g} GB, "
                f"the largest node has {largest:g} GB"
            )


def _tables(path: Path, content: Mapping[str, Any], kind: str, spec: type[Spec]) -> list[Spec]:
    tables = content.get(kind)
    if not isinstance(tables, list) or not tables:
        raise BadInput(f"{path} has no [[{kind}]] table")
    made = []
    for number, table in enumerate(tables, 1):
        where = f"{path}: [[{kind}]] number {number}"
        if isinstance(table, dict) and isinstance(table.get("name"), str):
            where += f" ({table['name']})"
        try:
            made.append(msgspec.convert(table, spec))
        except msgspec.ValidationError as error:
            raise BadInput(f"{where}: {_plain(error)}") from error
    _refuse_twins(str(path), kind, [one.name for one in made])
    return made


def _refuse_twins(where: str, kind: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"{where}: two [[{kind}]] are named {name!r}")


def _plain(error: msgspec.ValidationError) -> str:
    """msgspec's sentence, with the key in front: `vram_gb: expected `float`, got `str``."""
    text, _, path = str(error).partition(" - at `$.")
    text = text.replace("Object missing required field", "the key is missing:")
    text = text.replace("Object contains unknown field", "the key is not known:")
    return f"{path.rstrip('`')}: {text[0].lower()}{text[1:]}" if path else text
