"""`arriero nodes`, `arriero models`: what the fleet has."""

import asyncio
from typing import Any

from libs.cli.output import Json, show, table


def nodes(as_json: Json = False) -> None:
    """Every node: is it alive, what it runs, which models it has loaded."""
    found = asyncio.run(_nodes())
    rows = [
        (
            node["name"],
            node["state"],
            f"{node['running']}/{node['slots']}",
            ", ".join(model["name"] for model in node["loaded"]),
            ", ".join(model["name"] for model in node["models"]),
            node["problem"] or "",
        )
        for node in found["nodes"]
    ]
    show(found, table(rows, ("NODE", "STATE", "BUSY", "LOADED", "MODELS", "")))


def models(as_json: Json = False) -> None:
    """Every model that some node has."""
    found = asyncio.run(_models())
    show(found, table([(model["id"],) for model in found["data"]], ("MODEL",)))


async def _nodes() -> Any:
    from libs.cli.admin import CLUSTER, access_token
    from libs.cli.http import connect
    from libs.cli.whereabouts import administrator, fleet_url

    url = fleet_url()
    async with connect(url, await access_token(administrator(), CLUSTER)) as http:
        return await http.call("GET", "/nodes")


async def _models() -> Any:
    from libs.cli.http import connect
    from libs.cli.whereabouts import gateway

    where = gateway()
    async with connect(where.url, where.api_key) as http:
        return await http.call("GET", "/v1/models")
