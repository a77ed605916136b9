"""The model routes: tags, ps, show, pull, copy, delete."""

import time

import msgspec

from libs.ollama_sim.access import capabilities
from libs.ollama_sim.exchange import JSON, Exchange
from libs.ollama_sim.models import ChatPath, Model
from libs.ollama_sim.names import DEFAULT_HOST, ModelName, parse_name
from libs.ollama_sim.node import Node
from libs.ollama_sim.prompts import TEMPLATES
from libs.ollama_sim.refusals import Refusal
from libs.ollama_sim.requests import read_object
from libs.ollama_sim.runner import Runner
from libs.ollama_sim.scheduler import expiry_ns
from libs.ollama_sim.wire import Details, InstalledModel, LoadedModel, ProgressLine, ShownModel, Tensor, encode, go_time

_PULLED_SIZE = 2 * 10**9
_PULL_STEPS = 10
_HEAD_LENGTH = 128


async def tags(node: Node, exchange: Exchange, body: bytes) -> None:
    await exchange.json({"models": [_installed(model) for model in node.models]})


async def ps(node: Node, exchange: Exchange, body: bytes) -> None:
    """Loaded models, the latest expiry first; one that is being loaded is not among them."""
    loaded = [(_expires_ns(runner), runner) for runner in node.scheduler.runners.values()]
    loaded.sort(key=lambda each: -each[0])
    await exchange.json({"models": [_loaded(runner, expires) for expires, runner in loaded]})


async def show(node: Node, exchange: Exchange, body: bytes) -> None:
    fields = read_object(body)
    text = str(fields.get("model") or fields.get("name") or "")
    if not text:
        raise Refusal(400, "model is required")
    name = parse_name(text)
    model = node.find(name) if name is not None else None
    if model is None:
        raise Refusal(404, f"model '{name.short if name else text}' not found")
    await exchange.json(_shown(model))


async def copy(node: Node, exchange: Exchange, body: bytes) -> None:
    fields = read_object(body)
    source_text, target_text = str(fields.get("source") or ""), str(fields.get("destination") or "")
    source, target = parse_name(source_text), parse_name(target_text)
    if source is None or target is None:
        bad, role = (source_text, "source") if source is None else (target_text, "destination")
        raise Refusal(400, f'{role} "{bad}" is invalid')
    model = node.find(source)
    if model is None:
        raise Refusal(404, f'model "{source_text}" not found')
    twin = msgspec.structs.replace(model, name=target, blob=model.blob or model.name.key, modified_ns=time.time_ns())
    node.install(twin)
    await exchange.whole(b"", None)


async def delete(node: Node, exchange: Exchange, body: bytes) -> None:
    fields = read_object(body)
    text = str(fields.get("model") or fields.get("name") or "")
    name = parse_name(text)
    model = node.find(name) if name is not None else None
    if model is None:
        raise Refusal(404, f"model '{text}' not found")
    node.delete(model)
    await exchange.whole(b"", None)


async def pull(node: Node, exchange: Exchange, body: bytes) -> None:
    """Any name of the default registry can be pulled and becomes a small model without extras."""
    fields = read_object(body)
    text = str(fields.get("model") or fields.get("name") or "")
    name = parse_name(text)
    if name is None:
        raise Refusal(400, "invalid model name")
    is_stream = fields.get("stream") is not False
    if is_stream:
        await exchange.line(ProgressLine("pulling manifest"))
    if name.host != DEFAULT_HOST:
        await _pull_error(exchange, _unreachable(name), is_stream=is_stream)
        return
    model = node.find(name) or Model(name=name, size_bytes=_PULLED_SIZE, modified_ns=time.time_ns())
    digest = f"sha256:{model.blob_id}"
    steps = 1 if node.find(name) else _PULL_STEPS
    for step in range(1, steps + 1):
        await node.pace.sleep(0 if steps == 1 else model.size_bytes / (node.config.disk_gbps * 10**9) / steps)
        if is_stream:
            completed = model.size_bytes * step // steps
            await exchange.line(ProgressLine(f"pulling {model.blob_id[:12]}", digest, model.size_bytes, completed))
    node.install(model)
    if not is_stream:
        await exchange.json({"status": "success"})
        return
    for status in ("verifying sha256 digest", "writing manifest", "success"):
        await exchange.line(ProgressLine(status))
    await exchange.end()


async def _pull_error(exchange: Exchange, text: str, *, is_stream: bool) -> None:
    if is_stream:
        await exchange.line({"error": text})
        await exchange.end()
    else:
        await exchange.whole(encode({"error": text}), JSON, 500)


def _unreachable(name: ModelName) -> str:
    url = f"https://{name.host}/v2/{name.namespace}/{name.model}/manifests/{name.tag}"
    return f'pull model manifest: Get "{url}": dial tcp {name.host}: connect: connection refused'


def _installed(model: Model) -> InstalledModel:
    return InstalledModel(
        name=model.name.short,
        model=model.name.short,
        modified_at=go_time(model.modified_ns),
        size=model.size_bytes,
        digest=model.digest,
        details=msgspec.structs.replace(
            details_of(model), context_length=model.context_length, embedding_length=_width(model)
        ),
        capabilities=capabilities(model),
    )


def _loaded(runner: Runner, expires_ns: int) -> LoadedModel:
    return LoadedModel(
        name=runner.model.name.short,
        model=runner.model.name.short,
        size=runner.size_bytes,
        digest=runner.model.digest,
        details=details_of(runner.model),
        expires_at=go_time(expires_ns),
        size_vram=runner.vram_bytes,
        context_length=runner.num_ctx,
    )


def _expires_ns(runner: Runner) -> int:
    """Slides along with the clock while the first user is still there; afterwards it stands until the next idle time."""
    return expiry_ns(runner.keep_alive_s) if runner.expires_ns is None else runner.expires_ns


def details_of(model: Model) -> Details:
    return Details(
        parent_model="",
        format="gguf",
        family=model.family,
        families=[model.family],
        parameter_size=_in_millions_or_billions(model.parameter_count),
        quantization_level=model.quantization,
    )


def _in_millions_or_billions(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 10**9 else f"{count / 1e6:.2f}M"


def _shown(model: Model) -> ShownModel:
    template = "{{ .Prompt }}" if model.can_embed else TEMPLATES[model.path]
    extra = "RENDERER simulated\nPARSER simulated\n" if model.path is ChatPath.PARSER else ""
    is_go = model.path in {ChatPath.TEMPLATE_OPEN, ChatPath.TEMPLATE_CLOSED}
    layer = f'TEMPLATE """{template}"""' if is_go else "TEMPLATE {{ .Prompt }}"
    modelfile = (
        '# Modelfile generated by "ollama show"\n# To build a new Modelfile based on this, replace FROM with:\n'
        f"# FROM {model.name.short}\n\nFROM /var/lib/ollama/.models/blobs/sha256-{model.blob_id}\n{layer}\n{extra}"
    )
    return ShownModel(
        modelfile=modelfile,
        template=template,
        details=details_of(model),
        model_info=_model_info(model),
        tensors=_tensors(model),
        capabilities=capabilities(model, is_shown=True),
        modified_at=go_time(model.modified_ns),
    )


def _model_info(model: Model) -> dict[str, object]:
    """The numbers a placement rule needs; keys in the order of the alphabet, as Go writes a map."""
    family, width = model.family, _width(model)
    info: dict[str, object] = {
        "general.architecture": family,
        "general.file_type": 1 if model.can_embed else 15,
        "general.parameter_count": model.parameter_count,
        "general.quantization_version": 2,
        f"{family}.attention.head_count": max(1, width // _HEAD_LENGTH),
        f"{family}.attention.head_count_kv": max(1, width // _HEAD_LENGTH // 4),
        f"{family}.block_count": _blocks(model),
        f"{family}.context_length": model.context_length,
        f"{family}.embedding_length": width,
        f"{family}.feed_forward_length": width * 3,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.model": "bert" if model.can_embed else "gpt2",
        "tokenizer.ggml.token_type": None,
        "tokenizer.ggml.tokens": None,
    }
    if model.can_embed:
        info[f"{family}.pooling_type"] = 1
    return dict(sorted(info.items()))


def _tensors(model: Model) -> list[Tensor]:
    width = _width(model)
    per_block = [
        Tensor(f"blk.{block}.{part}.weight", "F16", [width, width])
        for block in range(_blocks(model))
        for part in ("attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_up")
    ]
    return [Tensor("token_embd.weight", "F16", [width, 32_000]), *per_block]


def _width(model: Model) -> int:
    """Embedding length: declared for embedding models, else about what models of this size have."""
    if model.can_embed:
        return model.embedding_length
    return next((width for limit, width in ((10**9, 1024), (4 * 10**9, 3072)) if model.parameter_count < limit), 4096)


def _blocks(model: Model) -> int:
    return max(4, min(80, model.parameter_count // 250_000_000))
