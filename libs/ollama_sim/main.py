"""The command line of the simulated node."""

import argparse
import asyncio
import math
import signal
import sys
from collections.abc import Callable
from typing import Any

import uvloop

from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.durations import BadDuration, parse_keep_alive
from libs.ollama_sim.faults import BadFaultSpec, FaultKind, parse_faults
from libs.ollama_sim.memory import KvType
from libs.ollama_sim.models import DEFAULT_MODELS, BadModelSpec, Model, parse_model, parse_models, parse_size
from libs.ollama_sim.server import running

_DESCRIPTION = """\
A simulated Ollama node: the API, the scheduler and the failures of a real one, without a GPU and without weights.
It answers with harmless prose that depends only on the seed, the model and the conversation, so two nodes with the
same seed continue each other's answers."""

_EPILOG = f"""\
models     name=size with attributes, separated by commas. Attributes: thinking, tools, caller (calls the first
           tool it is offered), embed, vision; native (default), template-open, template-closed, parser (how chat
           becomes a prompt, and so how a cut answer can be continued); ctx=N, dim=N, blob=NAME (shares a runner),
           rev=N (other bytes, other digest), family=NAME (GGUF architecture).
           Example: --models 'llama3.2:3b=2.0GB:tools,qwen3:8b=5.2GB:thinking:tools,all-minilm=46MB:embed:dim=384'
           or one by one: --model llama3.2:3b=2.0GB:tools --model qwen3:8b=5.2GB
machine    --vram makes the node a described machine. A model takes its weights, the key-value cache of all slots
           (context, --slots, --kv-cache-type) and buffers; what does not fit evicts others as Ollama does, or
           lies partly on the CPU (size_vram < size in /api/ps) and is slower for it; --vram 0 has no GPU at all.
           --decode-tps and --prefill-tps then hold for a model of 4.5 GB on the GPU, --cpu-decode-tps and
           --cpu-prefill-tps for one on the CPU; a model of 9 GB runs at half of them. The memory decides the
           default context: 4096, from 23GiB on 32768, from 47GiB on 262144 (24GB is less than 23GiB).
           Without --vram the rates hold for every model, next to 24 GB of memory and a context of 4096.
           Example: --vram 24GiB --decode-tps 100 --prefill-tps 2500 --load-gbps 3 --slots 2
clock      --time-scale 50 makes loads, prompts, tokens, downloads and keep_alive 50 times shorter; what the node
           reports (load_duration, eval_duration, ...) stays in simulated time.
directives in the last user message: [[tokens=500]] answers with 500 tokens, [[think=20]] thinks that long,
           [[tool=get_weather {{"city":"Oslo"}}]] makes a tool call, [[say=Hello.]] answers just that.
faults     kind:key=value,key=value separated by semicolons; also POST /sim/faults with a JSON list.
           Kinds: {", ".join(FaultKind)}.
           Keys: model, request (fires from the n-th match on), probability, count (how often; 0 = always),
           after_tokens (0 = before the first byte), seconds, route.
           Example: --faults 'crash:after_tokens=5;busy:probability=0.1,count=0'
control    GET /sim/state tells what the node is doing.

Try it:    curl http://127.0.0.1:11434/api/chat -d '{{"model":"llama3.2:3b","messages":[{{"role":"user","content":"Hi"}}]}}'
"""


def main(argv: list[str] | None = None) -> int:
    """Run one node until it is stopped; returns the exit status."""
    config, port = read_arguments(argv)
    try:
        uvloop.run(_serve(config, port))
    except OSError as exc:
        print(f"cannot listen on {config.host}:{port}: {exc.strerror or exc}", file=sys.stderr)
        return 1
    return 0


def read_arguments(argv: list[str] | None) -> tuple[NodeConfig, int]:
    """The node's configuration and its port; ends the process with a message when an option cannot be read."""
    parser = _parser()
    options = parser.parse_args(argv)
    config = NodeConfig(
        models=_models_of(options),
        registry=options.registry,
        host=options.host,
        version=options.ollama_version,
        seed=options.seed,
        slots=options.slots,
        max_loaded=options.max_loaded,
        max_queue=options.max_queue,
        default_keep_alive_s=options.keep_alive,
        default_num_ctx=options.context_length,
        vram_bytes=options.vram,
        kv_cache_type=options.kv_cache_type,
        cache_mib=options.cache_mib,
        disk_gbps=options.disk_gbps,
        load_overhead_s=options.load_overhead,
        pull_gbps=options.pull_gbps,
        decode_tps=options.decode_tps,
        prefill_tps=options.prefill_tps,
        cpu_decode_tps=options.cpu_decode_tps,
        cpu_prefill_tps=options.cpu_prefill_tps,
        time_scale=options.time_scale,
        is_instant=options.instant,
        has_bug_17408=not options.without_bug_17408,
        faults=options.faults,
    )
    return config, options.port


def _models_of(options: argparse.Namespace) -> tuple[Model, ...]:
    """Both ways of naming models add up; the default models are there only when neither is used."""
    if options.models is None and not options.model:
        return parse_models(DEFAULT_MODELS)
    return (*(options.models or ()), *options.model)


async def _serve(config: NodeConfig, port: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stopped.set)
    async with running(config, port=port) as sim:
        names = ", ".join(model.name.short for model in config.models)
        print(f"simulated Ollama {config.version} on {sim.url} with {names}", flush=True)
        await stopped.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="arriero sim",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = NodeConfig(models=())
    add = parser.add_argument
    add("--host", default=defaults.host, help="address to bind (default %(default)s)")
    add("--port", type=int, default=11434, help="port; 0 takes a free one and prints it (default %(default)s)")
    add("--models", type=_by(parse_models), metavar="SPEC", help="installed models, see below")
    add("--model", type=_by(parse_model), action="append", default=[], metavar="SPEC", help="one more; repeatable")
    add(
        "--registry",
        type=_by(parse_models),
        default=(),
        metavar="SPEC",
        help="models that can be pulled, as in --models (default: any name, as a model of 2 GB)",
    )
    add(
        "--slots",
        type=_positive_int,
        default=defaults.slots,
        help="answers at once per model, OLLAMA_NUM_PARALLEL (default %(default)s)",
    )
    add(
        "--max-loaded", type=int, default=defaults.max_loaded, help="models loaded at once; 0 = 3 (default %(default)s)"
    )
    add(
        "--max-queue",
        type=_positive_int,
        default=defaults.max_queue,
        help="waiting requests that need a load (default %(default)s)",
    )
    add(
        "--keep-alive",
        type=_by(_keep_alive),
        default=defaults.default_keep_alive_s,
        help="seconds or a duration such as 5m; negative = for ever (default 5m)",
    )
    add(
        "--context-length",
        type=_positive_int,
        default=defaults.default_num_ctx,
        help="num_ctx of requests that name none (default 4096, or what --vram says, see below)",
    )
    add(
        "--vram",
        type=_by(_memory),
        default=defaults.vram_bytes,
        help="GPU memory, such as 24GB or 24GiB; 0 = none; describes the machine, see below",
    )
    add(
        "--kv-cache-type",
        type=KvType,
        choices=list(KvType),
        default=defaults.kv_cache_type,
        help="OLLAMA_KV_CACHE_TYPE: f16, q8_0 or q4_0 (default f16)",
        metavar="TYPE",
    )
    add(
        "--cache-mib",
        type=_not_negative(int),
        default=defaults.cache_mib,
        metavar="MIB",
        help="host memory for prompts that were read, per model; 0 = only the slots keep theirs (default %(default)s)",
    )
    add(
        "--disk-gbps",
        "--load-gbps",
        type=_positive,
        default=defaults.disk_gbps,
        metavar="GBPS",
        help="gigabytes of a model loaded per second (default %(default)s)",
    )
    add(
        "--load-overhead",
        type=_not_negative(float),
        default=defaults.load_overhead_s,
        metavar="SECONDS",
        help="what each load takes besides (default %(default)s)",
    )
    add("--pull-gbps", type=_positive, metavar="GBPS", help="gigabytes pulled per second (default: as loaded)")
    add(
        "--decode-tps",
        type=_positive,
        default=defaults.decode_tps,
        metavar="TPS",
        help="tokens per second of one answer alone (default %(default)s)",
    )
    add(
        "--prefill-tps",
        type=_positive,
        default=defaults.prefill_tps,
        metavar="TPS",
        help="prompt tokens per second (default %(default)s)",
    )
    add(
        "--cpu-decode-tps",
        type=_positive,
        default=defaults.cpu_decode_tps,
        metavar="TPS",
        help="the same on the CPU, with --vram (default %(default)s)",
    )
    add(
        "--cpu-prefill-tps",
        type=_positive,
        default=defaults.cpu_prefill_tps,
        metavar="TPS",
        help="the same on the CPU, with --vram (default %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=defaults.seed,
        help="nodes with the same seed give the same answers (default %(default)s)",
    )
    add(
        "--time-scale",
        type=_positive,
        default=defaults.time_scale,
        help="how many times faster than life the clock runs (default %(default)s)",
    )
    add("--instant", action="store_true", help="wait for nothing: for benchmarks of what is in front of the node")
    add("--faults", type=_by(parse_faults), default=(), metavar="SPEC", help="what shall go wrong, see below")
    add("--ollama-version", default=defaults.version, metavar="VERSION", help="version to report (default %(default)s)")
    add("--without-bug-17408", action="store_true", help="leave out the scheduler's known way to hang on an eviction")
    return parser


def _by(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader whose own error text reaches the user."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except (BadModelSpec, BadFaultSpec, BadDuration) as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return read


def _keep_alive(text: str) -> float:
    try:
        return parse_keep_alive(float(text))
    except ValueError:
        return parse_keep_alive(text)


def _memory(text: str) -> int:
    return 0 if text == "0" else parse_size(text)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def _not_negative(read: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = read(text)
        if not 0 <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is below zero or no number")
        return value

    return number
