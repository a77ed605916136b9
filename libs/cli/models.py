"""`arriero models …`: what the fleet has, and where it shall be."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer

from libs.cli.failures import CommandFailed
from libs.cli.output import Json, show, table

HELP = """Models of the fleet: list, pin, load, unload, pull, settings.

Without a command: every model, the nodes that have it (* in memory, ! pinned), and its settings.

\b
Examples:
  arriero models                                       what there is, and where
  arriero models pull qwen3:8b --node gpu-1            onto a node's disk, with progress
  arriero models pin qwen3:8b gpu-1                    keep it in gpu-1's memory, from now on
  arriero models set qwen3:8b --num-ctx 16384          one context for the whole fleet
  arriero models unload qwen3:8b                       out of every node's memory
"""

app = typer.Typer(help=HELP, invoke_without_command=True, rich_markup_mode=None)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Its name, such as llama3.2:3b.")]
Node = Annotated[list[str] | None, typer.Option("--node", metavar="NODE", help="This node; several times for several.")]
FEW_MORE_MINUTES = "5m"  # Ollama's own default


@app.callback()
def main(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_models()


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """Every model, the nodes that have it (* in memory, ! pinned), and its settings."""
    try:
        found = asyncio.run(_models())
    except CommandFailed as failure:
        if failure.code not in ("usage", "not_running"):
            raise
        found = asyncio.run(_names(failure))
    rows = [
        (model["name"], _size(model.get("size")), _places(model), *_settings(model.get("policy") or {}))
        for model in found
    ]
    text = table(rows, ("MODEL", "SIZE", "NODES", "CONTEXT", "KEEP-ALIVE", "ON-CPU"))
    if odd := [model["name"] for model in found if model.get("same_everywhere") is False]:
        text += f"\n\nNot the same bytes on all nodes: {', '.join(odd)}. `arriero models pull` on each makes them so."
    show({"models": found}, text)


@app.command()
def pull(
    model: Model,
    node: Node = None,
    everywhere: Annotated[bool, typer.Option("--all", help="On every node that answers.")] = False,
    as_json: Json = False,
) -> None:
    """Download a model onto the disks of nodes, with progress.

    It goes on when this command is interrupted; the same command then shows how far it is. What was cut off goes on where it
    stopped.

    \b
    Examples:
      arriero models pull qwen3:8b --node gpu-1 --node gpu-2
      arriero models pull hf.co/org/model-GGUF:Q4_K_M --all
    """
    if bool(node) == everywhere:
        raise CommandFailed("say where: --node NODE (several times for several), or --all", code="usage")

    async def act(admin: Any) -> Any:
        from libs.cli.fleet import find_node
        from libs.cli.progress import on_nodes

        nodes = await admin.nodes()
        names = [find_node(nodes, name)["name"] for name in node or ()]
        if everywhere:
            names = [each["name"] for each in nodes if each["state"] in ("ready", "draining")]
        if not names:
            raise CommandFailed("no node answers: `arriero nodes` says why", code="no_node")
        return await on_nodes(admin, names, {"op": "pull", "model": model})

    _tell(_act(act), "pulled")


@app.command()
def load(
    model: Model,
    node: Node = None,
    keep_alive: Annotated[
        str, typer.Option(metavar="TIME", help="How long it stays unused: 30m, 24h, -1 for ever. Default: its setting.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Load a model into memory, so that the first answer comes without waiting for that.

    Without --node: where it is in memory already, else on the ready node with the most room. To keep it there: `models pin`.

    \b
    Examples:
      arriero models load llama3.2:3b
      arriero models load qwen3:8b --node gpu-2 --keep-alive 8h
    """

    async def act(admin: Any) -> Any:
        from libs.cli.fleet import find_model, find_node, node_for_load
        from libs.cli.progress import on_nodes

        nodes, models = await asyncio.gather(admin.nodes(), admin.models())
        found = find_model(models, model)
        names = [find_node(nodes, name)["name"] for name in node or ()]
        if not names:
            best = node_for_load(found, nodes)
            if best is None:
                having = ", ".join(f"{at['name']} ({at['state']})" for at in found["nodes"])
                raise CommandFailed(f"no node that has {model} is ready: {having}", code="no_node")
            names = [best]
        order = {"op": "load", "model": model}
        return await on_nodes(admin, names, order | ({"keep_alive": _keep_alive(keep_alive)} if keep_alive else {}))

    _tell(_act(act), "loaded")


@app.command()
def unload(model: Model, node: Node = None, as_json: Json = False) -> None:
    """Take a model out of memory, on every node that has it there or on those named. Answers in flight end first.

    \b
    Example:
      arriero models unload llama3.2:3b --node gpu-1
    """

    async def act(admin: Any) -> Any:
        from libs.cli.fleet import find_model
        from libs.cli.progress import on_nodes

        found = find_model(await admin.models(), model)
        names = node or [at["name"] for at in found["nodes"] if at["loaded"]]
        return await on_nodes(admin, names, {"op": "unload", "model": model}) if names else []

    _tell(_act(act), "unloaded", nothing=f"{model} is in no node's memory")


@app.command()
def pin(
    model: Model,
    node: Annotated[list[str], typer.Argument(metavar="NODE…", help="Where.")],
    as_json: Json = False,
) -> None:
    """Keep a model in the memory of these nodes, whatever else comes; it is loaded at once. Pins there are stay.

    \b
    Example:
      arriero models pin llama3.2:3b gpu-1 gpu-2
    """

    async def act(admin: Any) -> Any:
        from libs.cli.progress import on_nodes

        changed = await admin.change_model(model, {"pin": node})
        results = await on_nodes(admin, node, {"op": "load", "model": model, "keep_alive": -1})
        return {**changed, "results": results}

    done = _act(act)
    show(done, f"{done['name']} is pinned to {', '.join(done['policy']['pins'])}")


@app.command()
def unpin(
    model: Model,
    node: Annotated[list[str] | None, typer.Argument(metavar="[NODE…]", help="Where; without: everywhere.")] = None,
    as_json: Json = False,
) -> None:
    """Let a model leave memory again when it is not used.

    \b
    Example:
      arriero models unpin llama3.2:3b gpu-2
    """

    async def act(admin: Any) -> Any:
        from libs.cli.fleet import find_model
        from libs.cli.progress import on_nodes

        found = find_model(await admin.models(), model)
        before = found["policy"]["pins"]
        changed = await admin.change_model(model, {"unpin": node} if node else {"pins": []})
        gone = [name for name in before if name not in changed["policy"]["pins"]]
        there = [at["name"] for at in found["nodes"] if at["loaded"] and at["name"] in gone and at["state"] != "dead"]
        # What was loaded to stay for ever stays so until somebody says another time.
        keep_alive = changed["policy"]["keep_alive"]
        order = {"op": "load", "model": model, "keep_alive": FEW_MORE_MINUTES if keep_alive is None else keep_alive}
        return {**changed, "results": await on_nodes(admin, there, order) if there else []}

    done = _act(act)
    pins = ", ".join(done["policy"]["pins"])
    show(done, f"{done['name']} is pinned to {pins}" if pins else f"{done['name']} is pinned nowhere")


@app.command("set")
def set_policy(
    model: Model,
    num_ctx: Annotated[
        str, typer.Option(metavar="N", help="Its context in tokens, on every node; auto: as loaded.")
    ] = "",
    keep_alive: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long it stays in memory unused: 30m, 24h, -1 for ever; auto: by how often it is used.",
        ),
    ] = "",
    on_cpu: Annotated[str, typer.Option(metavar="WHEN", help="On nodes without a GPU: auto, always or never.")] = "",
    as_json: Json = False,
) -> None:
    """Settings of a model for the whole fleet. What is not named stays.

    One context for all keeps clients from forcing reloads: a model that is asked for with another context is loaded anew.

    \b
    Examples:
      arriero models set qwen3:8b --num-ctx 16384 --keep-alive 24h
      arriero models set llama3:70b --on-cpu never
    """
    change: dict[str, Any] = {}
    if num_ctx:
        if num_ctx != "auto" and not num_ctx.isdecimal():
            raise CommandFailed(f"--num-ctx takes a number of tokens, or auto (got {num_ctx!r})", code="usage")
        change["num_ctx"] = None if num_ctx == "auto" else int(num_ctx)
    if keep_alive:
        change["keep_alive"] = None if keep_alive == "auto" else _keep_alive(keep_alive)
    if on_cpu:
        if on_cpu not in ("auto", "always", "never"):
            raise CommandFailed(f"--on-cpu takes auto, always or never (got {on_cpu!r})", code="usage")
        change["on_cpu"] = on_cpu
    if not change:
        raise CommandFailed("name what shall change: --num-ctx, --keep-alive, --on-cpu", code="usage")

    async def act(admin: Any) -> Any:
        return await admin.change_model(model, change)

    done = _act(act)
    context, kept, cpu = _settings(done["policy"])
    show(done, f"{done['name']}  context {context}  keep-alive {kept}  on CPU {cpu}")


def _act(act: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        from libs.cli.fleet import cluster

        async with cluster() as admin:
            return await act(admin)

    return asyncio.run(run())


def _tell(results: list[dict[str, Any]], what: str, nothing: str = "") -> None:
    text = "\n".join(f"{line['model']} {what} on {line['node']}" for line in results)
    show({"results": results}, text or nothing)


async def _models() -> list[dict[str, Any]]:
    from libs.cli.fleet import cluster

    async with cluster() as admin:
        return await admin.models()


async def _names(failure: CommandFailed) -> list[dict[str, Any]]:
    """What any client may see. Raises `failure` when there is not even a client to be."""
    from libs.cli.http import connect
    from libs.cli.whereabouts import gateway

    try:
        where = gateway()
    except CommandFailed:
        raise failure from None
    async with connect(where.url, where.api_key) as http:
        return [{"name": model["id"]} for model in (await http.call("GET", "/v1/models"))["data"]]


def _keep_alive(text: str) -> str | int:
    """A number is seconds: Ollama takes no string without a unit."""
    return int(text) if text.removeprefix("-").isdecimal() else text


def _places(model: dict[str, Any]) -> str:
    pins = (model.get("policy") or {}).get("pins", [])
    places = [(at["name"], at["loaded"]) for at in model.get("nodes", [])]
    places += [(name, False) for name in pins if name not in [name for name, _ in places]]
    return ", ".join(f"{name}{'*' if loaded else ''}{'!' if name in pins else ''}" for name, loaded in places)


def _settings(policy: dict[str, Any]) -> tuple[str, str, str]:
    kept = policy.get("keep_alive")
    shown = "auto" if kept is None else "for ever" if kept == -1 else f"{kept} s" if isinstance(kept, int) else kept
    return str(policy.get("num_ctx") or "auto"), shown, policy.get("on_cpu", "auto")


def _size(size: int | None) -> str:
    if not size:
        return "-"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
