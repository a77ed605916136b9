"""Everything that makes one node behave differently from another."""

import msgspec

from libs.ollama_sim.faults import Fault
from libs.ollama_sim.models import DEFAULT_MODELS, Model, parse_models


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Rates and sizes are those of the simulated machine, before `time_scale` makes it faster."""

    models: tuple[Model, ...] = msgspec.field(default_factory=lambda: parse_models(DEFAULT_MODELS))
    host: str = "127.0.0.1"  # bound to a loopback address, Ollama also checks the Host header
    version: str = "0.33.0"
    seed: int = 0  # nodes with equal seeds give equal answers
    slots: int = 1  # OLLAMA_NUM_PARALLEL
    max_loaded: int = 0  # OLLAMA_MAX_LOADED_MODELS; 0 = three, as with one GPU
    max_queue: int = 512  # OLLAMA_MAX_QUEUE; limits only requests that need a load
    default_keep_alive_s: float = 300.0  # OLLAMA_KEEP_ALIVE
    default_num_ctx: int = 4096  # OLLAMA_CONTEXT_LENGTH
    vram_bytes: int = 24 * 10**9  # 0 = a CPU node
    disk_gbps: float = 2.0  # gigabytes, not bits, per second
    load_overhead_s: float = 0.25  # process start and warm-up
    unload_s: float = 0.1
    decode_tps: float = 60.0  # one busy slot alone
    prefill_tps: float = 2000.0
    time_scale: float = 1.0
    is_instant: bool = False  # nothing ever waits; for benchmarks of what is in front of the node
    has_bug_17408: bool = True  # a request with a keep_alive can revive a model marked for eviction
    faults: tuple[Fault, ...] = ()

    @property
    def runner_limit(self) -> int:
        return self.max_loaded or 3
