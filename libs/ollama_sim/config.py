"""Everything that makes one node behave differently from another."""

import msgspec

from libs.ollama_sim.faults import Fault
from libs.ollama_sim.memory import KvType, default_context
from libs.ollama_sim.models import DEFAULT_MODELS, Model, parse_models
from libs.ollama_sim.rates import Rates, rates_of

_USUAL_VRAM = 24 * 10**9
_USUAL_NUM_CTX = 4096


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Rates and sizes are those of the simulated machine; `time_scale` only makes its clock run faster.

    With `vram_bytes` the node is a described machine: its memory decides the default context, rates hold for a model of
    4.5 GB and change with size and offload. Without, any model runs at the given rates, next to 24 GB of memory.
    """

    models: tuple[Model, ...] = msgspec.field(default_factory=lambda: parse_models(DEFAULT_MODELS))
    host: str = "127.0.0.1"  # bound to a loopback address, Ollama also checks the Host header
    version: str = "0.33.0"
    seed: int = 0  # nodes with equal seeds give equal answers
    slots: int = 1  # OLLAMA_NUM_PARALLEL
    max_loaded: int = 0  # OLLAMA_MAX_LOADED_MODELS; 0 = three, as with one GPU
    max_queue: int = 512  # OLLAMA_MAX_QUEUE; limits only requests that need a load
    default_keep_alive_s: float = 300.0  # OLLAMA_KEEP_ALIVE
    default_num_ctx: int | None = None  # OLLAMA_CONTEXT_LENGTH; None = by the memory of the described machine
    kv_cache_type: KvType = KvType.F16  # OLLAMA_KV_CACHE_TYPE
    vram_bytes: int | None = None  # 0 = a CPU node
    cache_mib: int = 8192  # LLAMA_ARG_CACHE_RAM: saved prefixes of one model, in the host's memory
    disk_gbps: float = 2.0  # gigabytes, not bits, per second
    pull_gbps: float | None = None  # None = as fast as the disk
    registry: tuple[Model, ...] = ()  # what can be pulled; empty = any name, as a model of 2 GB
    load_overhead_s: float = 0.25  # process start and warm-up
    unload_s: float = 0.1
    decode_tps: float = 60.0  # one busy slot alone
    prefill_tps: float = 2000.0
    cpu_decode_tps: float = 6.0  # of the part of a described machine's model that is not on its GPU
    cpu_prefill_tps: float = 60.0
    time_scale: float = 1.0
    is_instant: bool = False  # nothing ever waits; for benchmarks of what is in front of the node
    has_bug_17408: bool = True  # a request with a keep_alive can revive a model marked for eviction
    faults: tuple[Fault, ...] = ()

    @property
    def runner_limit(self) -> int:
        return self.max_loaded or 3

    @property
    def vram(self) -> int:
        return _USUAL_VRAM if self.vram_bytes is None else self.vram_bytes

    @property
    def num_ctx(self) -> int:
        """Of requests that name none; each model still clamps it to what it was trained with."""
        if self.default_num_ctx is not None:
            return self.default_num_ctx
        return _USUAL_NUM_CTX if self.vram_bytes is None else default_context(self.vram_bytes)

    def rates_of(self, model: Model, gpu_share: float) -> Rates:
        gpu = Rates(self.decode_tps, self.prefill_tps)
        if self.vram_bytes is None:
            return gpu
        return rates_of(model.size_bytes, gpu_share, gpu, Rates(self.cpu_decode_tps, self.cpu_prefill_tps))

    def load_s(self, model: Model) -> float:
        return self.load_overhead_s + model.size_bytes / (self.disk_gbps * 10**9)
