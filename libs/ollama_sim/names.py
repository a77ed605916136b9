"""Model names: `[host/][namespace/]model[:tag]`, with Ollama's defaults and its two ways of writing them out."""

import re

import msgspec

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}\Z")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}\Z")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}\Z")


class ModelName(msgspec.Struct, frozen=True):
    """A complete name; compare `key`, because Ollama finds existing models whatever the case."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def key(self) -> str:
        return self.full.lower()

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def short(self) -> str:
        """The form of `/api/tags` and `/api/ps`: default host and namespace left out, the tag always there."""
        name = f"{self.model}:{self.tag}"
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{name}"
        return name if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/{name}"

    @property
    def is_cloud(self) -> bool:
        return self.tag == "cloud" or self.tag.endswith("-cloud")


def parse_name(text: str) -> ModelName | None:
    """The name with its defaults filled in, or None when Ollama would call it invalid."""
    path, _, last = text.rpartition("/")
    model, colon, tag = last.partition(":")
    host, _, namespace = path.rpartition("/")
    name = ModelName(
        host=host or DEFAULT_HOST,
        namespace=namespace or DEFAULT_NAMESPACE,
        model=model,
        tag=tag if colon else DEFAULT_TAG,
    )
    is_valid = (
        _HOST.match(name.host)
        and _NAMESPACE.match(name.namespace)
        and _PART.match(name.model)
        and _PART.match(name.tag)
    )
    return name if is_valid else None
