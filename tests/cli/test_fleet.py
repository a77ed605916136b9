"""Orders to nodes: where a load goes, how progress is told, and what a broken stream means."""

import json
from typing import Any

import pytest

from libs.cli.failures import CommandFailed
from libs.cli.fleet import Cluster, find_model, node_for_load
from libs.cli.http import connect
from libs.cli.models import _keep_alive, _places
from libs.cli.progress import Sentences, on_nodes
from tests.cli.answering import Asked, Reply, answering, as_json

GB = 10**9


def node(name: str, state: str = "ready", vram: int | None = None, *loaded: int) -> dict[str, Any]:
    return {"name": name, "state": state, "vram": vram, "loaded": [{"name": "x", "size_vram": size} for size in loaded]}


def model(*places: tuple[str, bool]) -> dict[str, Any]:
    return {"name": "m:1", "nodes": [{"name": name, "loaded": loaded} for name, loaded in places]}


@pytest.mark.parametrize(
    ("nodes", "places", "best"),
    [
        ([node("a"), node("b")], [("a", False), ("b", True)], "b"),
        ([node("a", "dead"), node("b", "draining"), node("c")], [("a", True), ("b", True), ("c", False)], "c"),
        ([node("a", "ready", 24 * GB, 20 * GB), node("b", "ready", 8 * GB)], [("a", False), ("b", False)], "b"),
        ([node("a", "ready", None, 0), node("b")], [("a", False), ("b", False)], "b"),
        ([node("a"), node("b")], [("b", False)], "b"),
        ([node("a", "dead")], [("a", True)], None),
    ],
)
def test_a_load_goes_where_the_model_is_or_where_there_is_room(
    nodes: list[dict[str, Any]], places: list[tuple[str, bool]], best: str | None
):
    assert node_for_load(model(*places), nodes) == best


def test_a_model_is_found_in_any_spelling_and_an_unknown_one_says_how_to_get_it():
    there = [{"name": "llama3.2:3b"}, {"name": "all-minilm:latest"}]
    assert find_model(there, "All-MiniLM")["name"] == "all-minilm:latest"
    with pytest.raises(CommandFailed, match=r"there are: llama3.2:3b, .*`arriero models pull qwen3 --node NODE`"):
        find_model(there, "qwen3")


def test_places_are_marked():
    row = {"nodes": [{"name": "a", "loaded": True}, {"name": "b", "loaded": False}], "policy": {"pins": ["a", "c"]}}
    assert _places(row) == "a*!, b, c!"


def test_a_keep_alive_without_a_unit_is_seconds():
    assert [_keep_alive(text) for text in ("-1", "300", "5m")] == [-1, 300, "5m"]


def line(
    node: str, state: str = "running", status: str = "pulling aa", completed: int = 0, total: int = 0
) -> dict[str, Any]:
    return {
        "node": node, "op": "pull", "model": "m:1", "state": state, "status": status, "completed": completed,
        "total": total,
    }  # fmt: skip


def test_without_a_terminal_a_line_is_said_for_each_step_and_each_tenth(capsys: pytest.CaptureFixture[str]):
    voice = Sentences()
    for completed in range(101):
        voice.tell(line("a", completed=completed, total=100))
    voice.tell(line("a", status="verifying sha256 digest"))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "a: pulling aa 0 %"
    assert said[-1] == "a: verifying sha256 digest"
    assert len(said) == 12


def as_lines(*values: dict[str, Any], cut: bool = False) -> Reply:
    return Reply(200, [json.dumps(value).encode() + b"\n" for value in values], cut)


async def test_all_nodes_are_told_of_and_one_that_failed_is_the_commands_failure():
    def answer(asked: Asked) -> Reply:
        if asked.path == "/nodes/a/models":
            return as_lines(line("a"), line("a", "done", "pulled"))
        if asked.path == "/nodes/b/models":
            return as_lines(line("b"), line("b", "failed", "no space left on device"))
        return as_json({"code": "unavailable", "detail": "node c is away"}, 503)

    async with answering(answer) as server, connect(server.url, "token") as http:
        assert [each["state"] for each in await on_nodes(Cluster(http), ["a"], {"op": "pull", "model": "m:1"})] == [
            "done"
        ]
        with pytest.raises(CommandFailed, match="b: no space left on device; c: node c is away") as failure:
            await on_nodes(Cluster(http), ["a", "b", "c"], {"op": "pull", "model": "m:1"})
    assert failure.value.code == "unavailable"
    assert failure.value.details is not None
    assert [each["state"] for each in failure.value.details["results"]] == ["done", "failed", "failed"]
    assert server.asked[0].headers["authorization"] == "Bearer token"


@pytest.mark.parametrize("cut", [True, False])
async def test_a_stream_without_its_end_is_not_taken_for_done(cut: bool):
    async with answering(lambda asked: as_lines(line("a"), cut=cut)) as server, connect(server.url) as http:
        with pytest.raises(CommandFailed) as failure:
            await on_nodes(Cluster(http), ["a"], {"op": "pull", "model": "m:1"})
    assert failure.value.code == "away"


async def test_a_models_name_is_one_path_whatever_is_in_it():
    async with answering(lambda asked: as_json({"name": "m", "policy": {}})) as server, connect(server.url) as http:
        await Cluster(http).change_model("hf.co/org/name:Q4?x#y", {"num_ctx": 1})
    assert server.asked[0].path == "/models/hf.co/org/name:Q4?x#y/policy"
    assert server.asked[0].query == {}
