"""What operators decide about models and nodes: records of the bucket `models`, written by gateways, watched by routers.

Keys of the bucket: `model.<name in base32>` (a model's name has characters that no subject may have) and `node.<name>`.
"""

import base64
from enum import StrEnum

from libs.common.contracts.codec import Contract, Decoder
from libs.common.contracts.nodes import canonical_model


class OnCpu(StrEnum):
    """May nodes without a GPU run this model?"""

    AUTO = "auto"  # batch jobs, and small models
    ALWAYS = "always"
    NEVER = "never"


class ModelPolicy(Contract, frozen=True, kw_only=True):
    """`name` is canonical. Without a record all of it is as here."""

    name: str
    pins: tuple[str, ...] = ()  # nodes that keep it in memory, whatever else comes
    num_ctx: int | None = None  # its context on every node; None: what the first load gave it
    keep_alive: str | int | None = None  # None: the router sets it by how often the model is asked for
    on_cpu: OnCpu = OnCpu.AUTO


class NodePolicy(Contract, frozen=True, kw_only=True):
    name: str
    draining: bool = False  # no new work; what runs may finish


def model_record(name: str) -> str:
    """The key of a model's record, the same for all spellings of its name."""
    return "model." + base64.b32encode(canonical_model(name).encode()).decode().rstrip("=")


def node_record(name: str) -> str:
    return f"node.{name}"


decode_model_policy = Decoder(ModelPolicy)
decode_node_policy = Decoder(NodePolicy)
