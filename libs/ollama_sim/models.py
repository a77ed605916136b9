"""What a simulated model is, and the compact text that declares one on the command line."""

import hashlib
import re
from enum import StrEnum

import msgspec

from libs.ollama_sim.names import ModelName, parse_name

HEAD_LENGTH = 128
DEFAULT_MODELS = "llama3.2:3b=2.0GB:tools,qwen3:8b=5.2GB:thinking:tools,nomic-embed-text=274MB:embed"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)\Z", re.IGNORECASE)
_SIZE_UNITS = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip

_FAMILIES = (
    ("nomic-embed", "nomic-bert"), ("all-minilm", "bert"), ("mxbai-embed", "bert"), ("bge-", "bert"),
    ("qwen3-vl", "qwen3vl"), ("qwen3", "qwen3"), ("qwen", "qwen2"), ("gemma3", "gemma3"), ("gemma", "gemma2"),
    ("deepseek-r1", "qwen2"), ("mistral", "llama"), ("phi", "phi3"), ("gpt-oss", "gptoss"),
)  # fmt: skip


class ChatPath(StrEnum):
    """Who turns messages into a prompt; it decides how a cut answer can be continued."""

    NATIVE = "native"  # the engine's own Jinja template: a trailing assistant message is continued and repeated
    TEMPLATE_OPEN = "template-open"  # a Go template that leaves the last assistant message open: continued
    TEMPLATE_CLOSED = "template-closed"  # a Go template that closes it: a new answer begins
    PARSER = "parser"  # Ollama's renderer and parser: continued, inside the thinking too


class BadModelSpec(ValueError):
    """The text names the part of the specification that cannot be read."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One installed model; the same declaration has the same digests, and so the same answers, on every node."""

    name: ModelName
    size_bytes: int
    path: ChatPath = ChatPath.NATIVE
    can_think: bool = False
    can_call_tools: bool = False
    can_embed: bool = False
    can_see: bool = False
    is_eager_caller: bool = False  # calls the first offered tool without being told to
    context_length: int = 32768  # what it was trained with; num_ctx is clamped to it
    embedding_length: int = 768
    architecture: str = ""  # GGUF name; empty = guessed from the model's
    system: str = ""  # its Modelfile's, for requests without one
    blob: str = ""  # models that share a blob share a runner
    revision: int = 1  # another revision has other digests and other answers
    modified_ns: int = 0

    @property
    def digest(self) -> str:
        """Of the manifest: 64 hex digits without the `sha256:` in front."""
        return _sha256("manifest", self.name.full, self.blob_id, self.path, *([self.system] if self.system else []))

    @property
    def blob_id(self) -> str:
        return _sha256("blob", self.blob or self.name.key, str(self.revision))

    @property
    def family(self) -> str:
        if self.architecture:
            return self.architecture
        lowered = self.name.model.lower()
        found = next((family for prefix, family in _FAMILIES if lowered.startswith(prefix)), None)
        return found or ("bert" if self.can_embed else "llama")

    @property
    def quantization(self) -> str:
        return "F16" if self.can_embed else "Q4_K_M"

    @property
    def parameter_count(self) -> int:
        bits_per_weight = 16.0 if self.can_embed else 4.9
        return int(self.size_bytes * 8 / bits_per_weight)

    @property
    def width(self) -> int:
        """Embedding length: declared for embedding models, else about what models of this size have."""
        if self.can_embed:
            return self.embedding_length
        widths = ((10**9, 1024), (4 * 10**9, 3072))
        return next((width for limit, width in widths if self.parameter_count < limit), 4096)

    @property
    def block_count(self) -> int:
        return max(4, min(80, self.parameter_count // 250_000_000))

    @property
    def head_count(self) -> int:
        return max(1, self.width // HEAD_LENGTH)

    @property
    def kv_head_count(self) -> int:
        """Grouped-query attention, four to one."""
        return max(1, self.head_count // 4)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all blocks at two bytes each, from the numbers that `/api/show` tells."""
        return self.block_count * self.kv_head_count * 2 * HEAD_LENGTH * 2


def parse_models(spec: str) -> tuple[Model, ...]:
    """Read `name=size[:attribute]…` separated by commas; see the help text of `--models`."""
    return tuple(parse_model(part.strip()) for part in spec.split(",") if part.strip())


def parse_model(spec: str) -> Model:
    text, equals, rest = spec.partition("=")
    name = parse_name(text)
    if not equals or name is None:
        raise BadModelSpec(f"{spec!r}: expected name=size, for example llama3.2:3b=2.0GB")
    size, *attributes = rest.split(":")
    fields: dict[str, object] = {}
    for attribute in attributes:
        fields.update(_attribute(attribute, spec))
    return msgspec.convert({**fields, "name": name, "size_bytes": parse_size(size)}, Model)


def parse_size(text: str) -> int:
    """Bytes of `2.0GB` (decimal) or `2GiB` (binary)."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise BadModelSpec(f"{text!r}: expected a size such as 2.0GB or 512MiB")
    return int(float(match[1]) * _SIZE_UNITS[match[2].lower()])


def _attribute(attribute: str, spec: str) -> dict[str, object]:
    key, _, value = attribute.partition("=")
    match key:
        case "thinking":
            return {"can_think": True}
        case "tools":
            return {"can_call_tools": True}
        case "embed":
            return {"can_embed": True, "context_length": 2048}
        case "vision":
            return {"can_see": True}
        case "caller":
            return {"can_call_tools": True, "is_eager_caller": True}
        case "ctx" if value.isdigit():
            return {"context_length": int(value)}
        case "dim" if value.isdigit():
            return {"embedding_length": int(value)}
        case "rev" if value.isdigit():
            return {"revision": int(value)}
        case "family" if value:
            return {"architecture": value}
        case "blob" if value:
            shared = parse_name(value)
            return {"blob": shared.key if shared else value}
        case _ if key in {path.value for path in ChatPath}:
            return {"path": key}
    raise BadModelSpec(
        f"{attribute!r} in {spec!r}: expected thinking, tools, caller, embed, vision, native, template-open, "
        "template-closed, parser, ctx=N, dim=N, family=NAME, blob=NAME or rev=N"
    )


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
