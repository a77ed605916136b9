"""What operators may write about models and nodes, and what becomes of it. Pure.

A `PUT` names what shall change: what it does not name stays, null is back to the default.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, NamedTuple

import msgspec

from libs.common.contracts.catalog import ModelPolicy, NodePolicy, OnCpu
from libs.common.contracts.control import ModelOp, ModelOrder
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.contracts.nodes import canonical_model
from libs.common.contracts.subjects import TOKEN

MIN_CTX, MAX_CTX = 16, 10_000_000
FOREVER = -1
# Go's time.ParseDuration, which is what Ollama reads a string with; "300" and "-1" have no unit (ollama-facts.md §1.7).
_DURATION = re.compile(r"[+-]?((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+|0", re.ASCII)
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,299}")

Fields = dict[str, Any]
Readers = Mapping[str, Callable[[Any, str], Any]]


# The bodies as types, for the OpenAPI document. They are read field by field (`read_object`), because null and absent differ and
# each refusal says what would be right; a test holds the two against each other.
_Node = Annotated[str, msgspec.Meta(pattern=f"^{TOKEN.pattern}$")]
_Model = Annotated[str, msgspec.Meta(pattern=f"^{_MODEL.pattern}$")]
_Context = Annotated[int, msgspec.Meta(ge=MIN_CTX, le=MAX_CTX)]
_KeepAlive = (
    Annotated[str, msgspec.Meta(pattern=f"^({_DURATION.pattern})$", max_length=40)]
    | Annotated[int, msgspec.Meta(gt=-(2**31), lt=2**31)]
)


class ModelChangeBody(msgspec.Struct, forbid_unknown_fields=True):
    """`pins` is the whole list, `pin` and `unpin` are nodes more and less."""

    pins: list[_Node] | None = None
    pin: list[_Node] | None = None
    unpin: list[_Node] | None = None
    num_ctx: _Context | None = None
    keep_alive: _KeepAlive | None = None
    on_cpu: OnCpu | None = None


class NodePolicyBody(msgspec.Struct, forbid_unknown_fields=True):
    draining: bool


class OrderBody(msgspec.Struct, forbid_unknown_fields=True):
    """`keep_alive` and `num_ctx` are for a load."""

    op: ModelOp
    model: _Model
    keep_alive: _KeepAlive | None = None
    num_ctx: _Context | None = None


class ModelChange(NamedTuple):
    """`fields`: what is set. `pin` and `unpin`: nodes more and less, when the list as a whole is not given."""

    fields: Fields
    pin: tuple[str, ...] = ()
    unpin: tuple[str, ...] = ()

    def newly_pinned(self, before: ModelPolicy) -> tuple[str, ...]:
        named = (*self.fields.get("pins", ()), *self.pin)
        return tuple(node for node in named if node not in before.pins)


def read_object(body: bytes, known: Readers) -> Fields:
    """The fields that are there, each through its reader. Raises Failed: INVALID_REQUEST with the field's name."""
    try:
        found = msgspec.json.decode(body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise failed(Code.INVALID_REQUEST, "the body is no JSON") from None
    if not isinstance(found, dict):
        raise failed(Code.INVALID_REQUEST, "the body must be a JSON object")
    for name in found:
        if name not in known:
            raise failed(
                Code.INVALID_REQUEST, f"there is no field {name[:64]!r}; there are {', '.join(known)}", path=name[:64]
            )
    return {name: known[name](value, name) for name, value in found.items()}


def _wrong(path: str, what: str) -> Failed:
    return failed(Code.INVALID_REQUEST, f"{path} must be {what}", path=path)


def model_name(value: Any, path: str = "model") -> str:
    """As Ollama takes it: `[host/][namespace/]model[:tag]`. Raises Failed."""
    if not isinstance(value, str) or not _MODEL.fullmatch(value):
        raise _wrong(path, "a model's name, such as llama3.2:3b or hf.co/org/name:Q4_K_M")
    return value


def _nodes(value: Any, path: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(node, str) and TOKEN.fullmatch(node) for node in value):
        raise _wrong(path, "a list of names of nodes")
    return tuple(dict.fromkeys(value))


def _num_ctx(value: Any, path: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_CTX <= value <= MAX_CTX:
        raise _wrong(path, f"a number of tokens, {MIN_CTX} to {MAX_CTX}, or null")
    return value


def _keep_alive(value: Any, path: str) -> str | int | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31:
        return value
    if isinstance(value, str) and len(value) <= 40 and _DURATION.fullmatch(value):
        return value
    raise _wrong(path, 'whole seconds, a duration with its unit such as "30m", -1 for ever, or null')


def _on_cpu(value: Any, path: str) -> OnCpu:
    try:
        return OnCpu.AUTO if value is None else OnCpu(value)
    except ValueError:
        raise _wrong(path, f"one of {', '.join(OnCpu)}") from None


def _flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(path, "true or false")
    return value


def _op(value: Any, path: str) -> ModelOp:
    try:
        return ModelOp(value)
    except ValueError:
        raise _wrong(path, f"one of {', '.join(ModelOp)}") from None


def read_model_change(body: bytes) -> ModelChange:
    """Raises Failed: INVALID_REQUEST."""
    known: Readers = {
        "pins": _nodes, "pin": _nodes, "unpin": _nodes, "num_ctx": _num_ctx, "keep_alive": _keep_alive, "on_cpu": _on_cpu,
    }  # fmt: skip
    fields = read_object(body, known)
    if not fields:
        raise failed(Code.INVALID_REQUEST, f"name what shall change: {', '.join(known)}")
    if "pins" in fields and fields.keys() & {"pin", "unpin"}:
        raise failed(Code.INVALID_REQUEST, "pins is the whole list; with it there can be no pin and unpin", path="pins")
    return ModelChange(fields, fields.pop("pin", ()), fields.pop("unpin", ()))


def changed(before: ModelPolicy, change: ModelChange) -> ModelPolicy:
    after = msgspec.structs.replace(before, **change.fields)
    pins = [*after.pins, *(node for node in change.pin if node not in after.pins)]
    return msgspec.structs.replace(after, pins=tuple(node for node in pins if node not in change.unpin))


def read_node_policy(name: str, body: bytes) -> NodePolicy:
    """Raises Failed: INVALID_REQUEST."""
    fields = read_object(body, {"draining": _flag})
    if "draining" not in fields:
        raise failed(Code.INVALID_REQUEST, "say draining: true or false", path="draining")
    return NodePolicy(name=name, **fields)


def read_order(body: bytes, node: str, policy: Callable[[str], ModelPolicy], op_id: str) -> ModelOrder:
    """What is asked of a node, with the policy of its model. Raises Failed: INVALID_REQUEST."""
    known: Readers = {"op": _op, "model": model_name, "keep_alive": _keep_alive, "num_ctx": _num_ctx}
    fields = read_object(body, known)
    for name in ("op", "model"):
        if name not in fields:
            raise failed(Code.INVALID_REQUEST, f"{name} is missing", path=name)
    op, model = fields["op"], fields["model"]
    keep_alive, num_ctx = fields.get("keep_alive"), fields.get("num_ctx")
    if op is not ModelOp.LOAD:
        for name in ("keep_alive", "num_ctx"):
            if fields.get(name) is not None:
                raise failed(Code.INVALID_REQUEST, f"{name} is for a load only", path=name)
        return ModelOrder(op=op, model=model, op_id=op_id)
    decided = policy(model)
    if num_ctx is not None and decided.num_ctx is not None and num_ctx != decided.num_ctx:
        message = f"the context of {model} is {decided.num_ctx} in the whole fleet; change its policy instead"
        raise failed(Code.INVALID_REQUEST, message, path="num_ctx")
    if keep_alive is None:
        keep_alive = FOREVER if node in decided.pins else decided.keep_alive
    return ModelOrder(op=op, model=model, keep_alive=keep_alive, num_ctx=num_ctx or decided.num_ctx, op_id=op_id)


def no_node(name: str, nodes: Collection[str]) -> Failed:
    there = ", ".join(sorted(nodes)[:50]) or "none yet; start a worker"
    return failed(
        Code.NOT_FOUND, f"there is no node {name[:64]!r}; there are: {there}", details={"nodes": sorted(nodes)}
    )


def not_on_node(model: str, node: str) -> Failed:
    name, how = canonical_model(model), f"arriero models pull {model} --node {node}"
    return failed(Code.MODEL_NOT_FOUND, f"node {node} does not have {name}; pull it there first: {how}", path="model")
