"""The fleet as its administrator sees it, and orders to nodes."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from libs.cli.failures import CommandFailed
from libs.cli.http import Http


@contextlib.asynccontextmanager
async def cluster() -> AsyncIterator["Cluster"]:
    """Raises CommandFailed when there is no administrator to be."""
    from libs.cli.admin import CLUSTER, access_token
    from libs.cli.http import connect
    from libs.cli.whereabouts import administrator, fleet_url

    url = fleet_url()
    async with connect(url, await access_token(administrator(), CLUSTER)) as http:
        yield Cluster(http)


class Cluster:
    """Good for a few minutes, as its token; a stream that has begun goes on."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def nodes(self) -> list[dict[str, Any]]:
        return list((await self._http.call("GET", "/nodes"))["nodes"])

    async def models(self) -> list[dict[str, Any]]:
        return list((await self._http.call("GET", "/models"))["models"])

    async def change_model(self, model: str, change: dict[str, Any]) -> dict[str, Any]:
        """Its name and policy afterwards."""
        found: dict[str, Any] = await self._http.call("PUT", f"/models/{quote(model)}/policy", change)
        return found

    async def drain(self, node: str, draining: bool) -> None:
        await self._http.call("PUT", f"/nodes/{quote(node, safe='')}/policy", {"draining": draining})

    async def work(self, node: str, order: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """How far it is, again and again; the last line's state is `done` or `failed`. Raises CommandFailed."""
        last: dict[str, Any] = {}
        async for last in self._http.lines("POST", f"/nodes/{quote(node, safe='')}/models", order):
            yield last
        if last.get("state") not in ("done", "failed"):
            raise CommandFailed(f"the gateway went away; the work on {node} goes on: ask again to see it", code="away")


def same_model(one: str, other: str) -> bool:
    from libs.common.contracts.nodes import canonical_model

    return canonical_model(one) == canonical_model(other)


def find_model(models: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Raises CommandFailed with those there are."""
    found = next((model for model in models if same_model(model["name"], name)), None)
    if found is None:
        there = ", ".join(model["name"] for model in models) or "none yet"
        message = f"no node has the model {name}; there are: {there}. `arriero models pull {name} --node NODE` gets it"
        raise CommandFailed(message, code="model_not_found")
    return found


def find_node(nodes: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Raises CommandFailed with those there are."""
    found = next((node for node in nodes if node["name"] == name), None)
    if found is None:
        there = ", ".join(node["name"] for node in nodes) or "none yet"
        raise CommandFailed(f"there is no node {name!r}; there are: {there}", code="not_found")
    return found


def node_for_load(model: dict[str, Any], nodes: list[dict[str, Any]]) -> str | None:
    """Where a load without a named node goes: where it is in memory already; else, of the ready nodes that have it on disk, the
    one with the most GPU memory left, then the one with the fewest models in memory. None when no ready node has it."""
    ready = {node["name"]: node for node in nodes if node["state"] == "ready"}
    there = [place for place in model["nodes"] if place["name"] in ready]

    def left(name: str) -> int:
        node = ready[name]
        taken = sum(int(loaded["size_vram"]) for loaded in node["loaded"])
        return int(node["vram"] or 0) - taken

    if not there:
        return None
    best = min(
        there, key=lambda at: (not at["loaded"], -left(at["name"]), len(ready[at["name"]]["loaded"]), at["name"])
    )
    return str(best["name"])
