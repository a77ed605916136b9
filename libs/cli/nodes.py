"""`arriero nodes …`: who is in the fleet, and who shall have no new work."""

import asyncio
import sys
import time
from typing import Annotated, Any

import typer

from libs.cli.failures import CommandFailed
from libs.cli.output import Json, show, table

HELP = """Nodes of the fleet: list, drain, resume. A node joins when its worker starts, and leaves when it ends.

Without a command: every node, is it alive, what it runs, which models it has in memory and on disk.

\b
Examples:
  arriero nodes                       who is there
  arriero nodes drain gpu-1 --wait    no new work for it; returns when it is idle
  arriero nodes resume gpu-1          work for it again
"""

LOOK_S = 0.5
FRESH_S = 120.0  # an access token is good for five minutes

app = typer.Typer(help=HELP, invoke_without_command=True, rich_markup_mode=None)

Node = Annotated[str, typer.Argument(metavar="NODE", help="Its name.")]


@app.callback()
def main(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_nodes()


@app.command("list")
def list_nodes(as_json: Json = False) -> None:
    """Every node: is it alive, what it runs, which models it has in memory and on disk."""
    found = asyncio.run(_nodes())
    rows = [
        (
            node["name"],
            node["state"],
            f"{node['running']}/{node['slots']}",
            gpu(node.get("vram")),
            ", ".join(model["name"] for model in node["loaded"]),
            ", ".join(model["name"] for model in node["models"]),
            node["problem"] or "",
        )
        for node in found
    ]
    show({"nodes": found}, table(rows, ("NODE", "STATE", "BUSY", "VRAM", "LOADED", "MODELS", "")))


@app.command()
def drain(
    node: Node,
    wait: Annotated[bool, typer.Option("--wait", help="Return when nothing runs on it any more.")] = False,
    timeout: Annotated[float, typer.Option(min=1, metavar="S", help="Wait at most so many seconds.")] = 3600,
    as_json: Json = False,
) -> None:
    """No new work for a node; what runs there ends as usual. Lasts until `resume`, also when its worker is started again.

    \b
    Example, before a machine is taken down:
      arriero nodes drain gpu-1 --wait && ssh gpu-1 sudo systemctl stop arriero-worker@gpu-1
    """
    found = asyncio.run(_drain(node, True, timeout if wait else 0))
    left = found["running"]
    show(found, f"{node} drains" + (f"; {left} still running" if left else ", and nothing runs there"))


@app.command()
def resume(node: Node, as_json: Json = False) -> None:
    """Work for a node again."""
    show(asyncio.run(_drain(node, False, 0)), f"{node} takes work again")


def gpu(vram: int | None) -> str:
    return "?" if vram is None else f"{vram / 1e9:.1f} GB" if vram else "none"


async def _nodes() -> list[dict[str, Any]]:
    from libs.cli.fleet import cluster

    async with cluster() as admin:
        return await admin.nodes()


async def _drain(name: str, draining: bool, wait_s: float) -> dict[str, Any]:
    """The node afterwards."""
    from libs.cli.fleet import cluster, find_node

    async with cluster() as admin:
        await admin.drain(name, draining)
        node = find_node(await admin.nodes(), name)
    give_up, told = time.monotonic() + wait_s, -1
    while wait_s:
        async with cluster() as admin:
            fresh_until = time.monotonic() + FRESH_S
            while time.monotonic() < fresh_until:
                node = find_node(await admin.nodes(), name)
                if node["draining"] and node["running"] == 0:
                    return node
                if time.monotonic() >= give_up:
                    message = f"{name} drains, but {node['running']} still run after {wait_s:g} s; ask again to wait on"
                    raise CommandFailed(message, code="timeout", details={"node": node})
                if node["running"] != told:
                    told = node["running"]
                    print(f"{name}: {told} still running", file=sys.stderr)
                await asyncio.sleep(LOOK_S)
    return {**node, "draining": draining}  # the gateway that was asked may hear of it a moment later
