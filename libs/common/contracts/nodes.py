"""Heartbeats: what a worker says about its node every two seconds, to `$KV.nodes.<node>`."""

import functools
from enum import StrEnum

from libs.common.contracts.codec import Contract, Decoder

BEAT_S = 2.0
SUSPECT_S = 5.0  # no beat for so long: no new work
DEAD_S = 7.5  # no beat for so long: its jobs go elsewhere; with the look at it every 0.25 s, within the promised 8 s
RECORD_TTL_S = 600  # how long a node that left stays visible in /nodes


class Phase(StrEnum):
    STARTING = "starting"  # reading the request
    WAITING = "waiting"  # sent to Ollama, no byte yet: load, queue or prefill
    DECODING = "decoding"
    STOPPING = "stopping"  # ended or cancelled, the node has not let go yet


class Running(Contract, frozen=True, kw_only=True):
    """A run that holds a slot."""

    client: str
    job: str
    epoch: int
    phase: Phase
    model: str = ""


class DiskModel(Contract, frozen=True, kw_only=True):
    """A model on the node's disk, as /api/tags has it. `digest` is its identity across the fleet, not the name.
    `prompt_bytes`: of what its Modelfile puts before every prompt (SYSTEM, MESSAGE), from /api/show."""

    name: str
    digest: str = ""
    size: int = 0
    family: str = ""
    parameter_size: str = ""
    quantization: str = ""
    capabilities: tuple[str, ...] = ()
    modified_at: str = ""
    prompt_bytes: int = 0


class LoadedModel(Contract, frozen=True, kw_only=True):
    """A model in memory, as /api/ps has it; a model that is loading is not in it."""

    name: str
    digest: str = ""
    size: int = 0
    size_vram: int = 0
    context_length: int = 0
    expires_at: str = ""


class Heartbeat(Contract, frozen=True, kw_only=True):
    """`beat` counts up within a boot. `changes` counts changes of the slot table: an answer to `run` with changes = k is
    older than a heartbeat with changes ≥ k, which is how the router knows that a missing run has really ended."""

    node: str
    boot: str
    beat: int
    changes: int
    slots: int
    slots_per_model: int = 0  # 0: no cap of its own
    running: tuple[Running, ...] = ()
    models: tuple[DiskModel, ...] = ()
    loaded: tuple[LoadedModel, ...] = ()
    draining: bool = False
    reachable: bool = True  # the Ollama behind it answers, and is not stuck as a whole
    problem: str = ""  # why not, when not; or what is wrong with a part of it
    suspect_models: tuple[str, ...] = ()  # fell silent and are watched; no new work for them
    cold_stuck: bool = False  # a load never came: no work for models that are not in memory
    vram: int | None = None  # bytes of GPU memory that Ollama may fill; 0: CPU only; None: not known
    ollama_version: str = ""
    arriero_version: str = ""
    url: str = ""


decode_heartbeat = Decoder(Heartbeat)


@functools.lru_cache(maxsize=4096)  # few names, asked of for every job and heartbeat
def canonical_model(name: str) -> str:
    """The name under which Ollama would find a model: lower case, `:latest` added, default host and namespace dropped.

    A colon separates a tag only after the last slash (Ollama `types/model/name.go`; ollama-facts §5.3).
    """
    name = name.strip().lower()
    for default in ("registry.ollama.ai/library/", "registry.ollama.ai/", "library/"):
        if name.startswith(default):
            name = name.removeprefix(default)
            break
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
