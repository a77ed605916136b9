"""Which nodes there are: named ones, the Ollama on this machine, or simulated ones."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

from libs.cli.failures import CommandFailed
from libs.cli.up import probe
from libs.common.contracts.nodes import canonical_model

DEFAULT_PORT = "11434"
DEFAULT_HOST = "127.0.0.1"
REAL_SLOTS = 1  # what Ollama itself does when OLLAMA_NUM_PARALLEL is not set and memory is short
SIM_SLOTS = 4

# What the simulated nodes hold, in turn: different models, so that one sees routing; small, so that a load is quick.
SIM_MODELS = (
    "llama3.2:3b=2.0GB:tools,nomic-embed-text=274MB:embed",
    "qwen3:4b=2.6GB:thinking:tools",
    "gemma3:4b=3.3GB:vision,all-minilm=46MB:embed:dim=384",
    "mistral:7b=4.4GB:tools",
)

_LOCAL = {"127.0.0.1", "localhost", "::1"}
_RESERVED = {"router"}  # `ctl.router.…` are the router's own subjects
_NAME_LENGTH = 40


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """`url` is empty for a simulated node until it has a port; `sim_models` is empty for a real one."""

    name: str
    slots: int
    url: str = ""
    sim_models: str = ""
    reachable: bool = True

    @property
    def simulated(self) -> bool:
        return bool(self.sim_models)


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """`remarks`: what a human should be told about this choice. `sizes`: bytes of the models that are known already."""

    nodes: tuple[Node, ...]
    remarks: tuple[str, ...] = ()
    sizes: dict[str, int] = {}

    @property
    def expected_models(self) -> set[str]:
        """Those that the gateway will list when it knows every node that answers."""
        simulated = {spec.partition("=")[0] for node in self.nodes for spec in node.sim_models.split(",") if spec}
        return {canonical_model(name) for name in (*self.sizes, *simulated)}


class _Tag(msgspec.Struct):
    name: str
    size: int = 0


class _Tags(msgspec.Struct):
    models: list[_Tag] | None = None


class _Version(msgspec.Struct):
    version: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What an Ollama said about itself."""

    version: str
    models: dict[str, int]


def parse_host(text: str) -> str:
    """The URL that Ollama's own client would use for an OLLAMA_HOST (`envconfig.Host`, `ConnectableHost`).

    Note its default ports: 11434, but 80 and 443 when `http://` or `https://` is written out. Raises CommandFailed.
    """
    text = text.strip().strip("\"'").strip()
    scheme, colons, rest = text.partition("://")
    if not colons:
        scheme, rest, port = "http", text, DEFAULT_PORT
    else:
        port = {"http": "80", "https": "443"}.get(scheme.lower(), "")
        if not port:
            raise CommandFailed(
                f"{text!r} is no address of an Ollama: use host, host:port or http(s)://host:port", code="usage"
            )
    host_port, _, path = rest.partition("/")
    host, port = _split(host_port, port)
    if host in ("0.0.0.0", "::", ""):  # where a server listens; a client reaches it here
        host = DEFAULT_HOST
    if not re.fullmatch(r"[A-Za-z0-9._%:-]+", host) or not port.isdigit() or not 0 < int(port) < 65536:
        raise CommandFailed(
            f"{text!r} is no address of an Ollama: use host, host:port or http(s)://host:port", code="usage"
        )
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme.lower()}://{shown}:{int(port)}" + (f"/{path.rstrip('/')}" if path.rstrip("/") else "")


def _split(text: str, default_port: str) -> tuple[str, str]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":") or default_port
    if text.count(":") > 1:  # a bare IPv6 address
        return text, default_port
    host, _, port = text.partition(":")
    return host, port or default_port


def name_nodes(urls: Sequence[str]) -> list[str]:
    """A subject token for each URL, in order, no two alike: the host, with the port where it is not Ollama's."""
    names: list[str] = []
    for url in urls:
        parts = urlsplit(url)
        host = parts.hostname or DEFAULT_HOST
        base = "local" if host in _LOCAL else re.sub(r"[^A-Za-z0-9_-]+", "-", host).strip("-") or "node"
        if str(parts.port) != DEFAULT_PORT:
            base = f"{base[:_NAME_LENGTH]}-{parts.port}"
        base = base[: _NAME_LENGTH + 6]
        name, n = base, 1
        while name in names or name in _RESERVED:
            n += 1
            name = f"{base}-{n}"
        names.append(name)
    return names


def simulated_nodes(count: int, slots: int | None) -> list[Node]:
    """`sim-a`, `sim-b`, … ; at most 26, `ports` has room for fewer."""
    if not 1 <= count <= 20:
        raise CommandFailed(f"--sim takes 1 to 20 nodes, not {count}", code="usage")
    return [
        Node(name=f"sim-{chr(ord('a') + n)}", slots=slots or SIM_SLOTS, sim_models=SIM_MODELS[n % len(SIM_MODELS)])
        for n in range(count)
    ]


async def ask(url: str, *, timeout: float = 1.0) -> Answer | None:
    """None when no Ollama answers there within `timeout`."""
    version, tags = await asyncio.gather(
        probe.get(f"{url}/api/version", timeout=timeout), probe.get(f"{url}/api/tags", timeout=timeout)
    )
    if not version or version[0] != 200:
        return None
    try:
        said = msgspec.json.decode(version[1], type=_Version)
        listed = msgspec.json.decode(tags[1], type=_Tags) if tags and tags[0] == 200 else _Tags()
    except msgspec.MsgspecError:
        return None
    return Answer(version=said.version, models={tag.name: tag.size for tag in listed.models or []})


async def choose_fleet(
    named: Sequence[str], simulated: int | None, slots: int | None, environment: Mapping[str, str]
) -> Fleet:
    """Named nodes and asked-for simulated ones; with neither the Ollama of this machine; without one two simulated nodes."""
    real_slots = slots or _parallel(environment)
    if named:
        urls = [parse_host(text) for text in named]
        if len(set(urls)) < len(urls):
            raise CommandFailed("--nodes names the same Ollama twice; one node has one worker", code="usage")
        return _named(
            urls,
            await asyncio.gather(*map(ask, urls)),
            real_slots,
            simulated_nodes(simulated, slots) if simulated else [],
        )
    if simulated is not None:
        nodes = simulated_nodes(simulated, slots)
        return Fleet(nodes=tuple(nodes), remarks=(_simulated(len(nodes)),))
    host = environment.get("OLLAMA_HOST", "").strip()
    url = parse_host(host or DEFAULT_HOST)
    return decide(url, await ask(url), real_slots, slots, asked_for=bool(host))


def decide(url: str, answer: Answer | None, real_slots: int, slots: int | None, *, asked_for: bool) -> Fleet:
    """What to do when no nodes were named, given what the Ollama at `url` answered."""
    if answer and answer.models:
        return Fleet(
            nodes=(Node(name=name_nodes([url])[0], url=url, slots=real_slots),),
            remarks=(f"Found Ollama {answer.version} at {url} with {_count(len(answer.models), 'model')}.",),
            sizes=answer.models,
        )
    nodes = tuple(simulated_nodes(2, slots))
    remarks = []
    if answer:
        remarks.append(f"The Ollama at {url} has no model yet; `ollama pull llama3.2:3b` and a new start would use it.")
    elif asked_for:
        remarks.append(f"OLLAMA_HOST points to {url}, but no Ollama answers there.")
    else:
        remarks.append(f"No Ollama answers at {url}.")
    return Fleet(nodes=nodes, remarks=(*remarks, _simulated(len(nodes))))


def _named(urls: list[str], answers: Sequence[Answer | None], slots: int, sims: list[Node]) -> Fleet:
    nodes, remarks, sizes = [], [], {}
    for name, url, answer in zip(name_nodes(urls), urls, answers, strict=True):
        nodes.append(Node(name=name, url=url, slots=slots, reachable=answer is not None))
        if answer is None:
            remarks.append(f"Node {name}: no Ollama answers at {url} yet; it takes part as soon as one does.")
        else:
            remarks.append(f"Node {name}: Ollama {answer.version} at {url} with {_count(len(answer.models), 'model')}.")
            sizes.update(answer.models)
    if sims:
        remarks.append(_simulated(len(sims)))
    return Fleet(nodes=(*nodes, *sims), remarks=tuple(remarks), sizes=sizes)


def _simulated(count: int) -> str:
    return f"Using {_count(count, 'simulated node')}: what they answer is made up, no model runs."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _parallel(environment: Mapping[str, str]) -> int:
    value = environment.get("OLLAMA_NUM_PARALLEL", "").strip().strip("\"'")
    return int(value) if value.isdigit() and int(value) > 0 else REAL_SLOTS
