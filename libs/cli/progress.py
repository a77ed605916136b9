"""Work on several nodes at once, shown while it goes: bars on a terminal, else a sentence for each step; all of it on stderr."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from libs.cli.failures import CommandFailed
from libs.cli.fleet import Cluster
from libs.cli.output import is_json


class Teller(Protocol):
    def tell(self, line: dict[str, Any]) -> None: ...


class Silent:
    def tell(self, line: dict[str, Any]) -> None:
        pass


class Sentences:
    """One when a status begins, and one every tenth of the bytes."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, int]] = {}

    def tell(self, line: dict[str, Any]) -> None:
        total = line["total"]
        tenth = 10 * line["completed"] // total if total else 0
        if self._said.get(line["node"]) == (line["status"], tenth):
            return
        self._said[line["node"]] = (line["status"], tenth)
        how_far = f" {100 * line['completed'] // total} %" if total else ""
        print(f"{line['node']}: {line['status']}{how_far}", file=sys.stderr, flush=True)


class Bars:
    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._bars: dict[str, Any] = {}

    def tell(self, line: dict[str, Any]) -> None:
        node = line["node"]
        if node not in self._bars:
            self._bars[node] = self._progress.add_task(node, total=None, status="")
        done = line["state"] == "done"
        total = line["total"] or (1 if done else None)
        completed = total if done else line["completed"]
        self._progress.update(self._bars[node], total=total, completed=completed, status=line["status"])


@contextlib.contextmanager
def teller() -> Iterator[Teller]:
    if is_json():
        yield Silent()
        return
    if not sys.stderr.isatty():
        yield Sentences()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    class Status(TextColumn):
        def __init__(self) -> None:
            super().__init__("")

        def render(self, task: Any) -> Any:
            from rich.text import Text

            return Text(str(task.fields["status"]), overflow="ellipsis", no_wrap=True)

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        Status(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bars(progress)


async def on_nodes(admin: Cluster, nodes: Sequence[str], order: dict[str, Any]) -> list[dict[str, Any]]:
    """The last line of each node, in their order. Raises CommandFailed when one failed, after all have ended."""
    with teller() as voice:
        results = await asyncio.gather(*(_on_node(admin, node, order, voice) for node in nodes))
    wrong = [line for line in results if line["state"] != "done"]
    if wrong:
        message = "; ".join(f"{line['node']}: {line['status']}" for line in wrong)
        code = next((line["code"] for line in wrong if line.get("code")), "node_failed")
        raise CommandFailed(message, code=code, details={"results": results})
    return list(results)


async def _on_node(admin: Cluster, node: str, order: dict[str, Any], voice: Teller) -> dict[str, Any]:
    last = {
        "node": node,
        "op": order["op"],
        "model": order["model"],
        "state": "failed",
        "status": "",
        "completed": 0,
        "total": 0,
    }
    try:
        async for line in admin.work(node, order):
            last = line
            voice.tell(line)
    except CommandFailed as failure:
        return {**last, "state": "failed", "status": str(failure), "code": failure.code}
    return last
