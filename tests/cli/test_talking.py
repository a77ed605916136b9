"""What the commands say to gateway and auth, and what they make of the answers."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from libs.cli import job
from libs.cli.chat import Talk
from libs.cli.conversation import Piece, answer
from libs.cli.failures import CommandFailed
from libs.cli.home import Home, MadeClient, UpFile
from libs.cli.http import connect
from libs.cli.sse import ServerEvent
from libs.cli.up.demo_client import demo_client, stored
from libs.cli.up.first_answer import listed_models
from libs.cli.whereabouts import Administrator, Gateway, gateway
from tests.cli.answering import Asked, Reply, answering, as_events, as_json

MESSAGES = [{"role": "user", "content": "Hi"}]


def _chunks(*deltas: dict[str, Any], done: bool = True) -> Reply:
    lines = [f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n".encode() for delta in deltas]
    return Reply(200, [*lines, *([b"data: [DONE]\n\n"] if done else [])])


async def _pieces(reply: Reply) -> list[Piece]:
    async with answering(lambda asked: reply) as server, connect(server.url, "key") as http:
        return [piece async for piece in answer(http, "m", MESSAGES)]


async def test_an_answer_comes_in_pieces_thinking_apart_from_text():
    pieces = await _pieces(
        _chunks({"role": "assistant"}, {"reasoning": "hm"}, {"content": "Hel"}, {"content": "lo"}, {})
    )

    assert pieces == [Piece("hm", thinking=True), Piece("Hel"), Piece("lo")]


async def test_an_answer_without_its_end_is_not_taken_for_a_whole_one():
    with pytest.raises(CommandFailed, match="cut off"):
        await _pieces(_chunks({"content": "Hel"}, done=False))


async def test_an_error_inside_the_stream_is_the_commands_error():
    error = {"error": {"message": "The node failed.", "code": "node_failed"}}

    with pytest.raises(CommandFailed, match="The node failed") as failure:
        await _pieces(Reply(200, [f"data: {json.dumps(error)}\n\n".encode()]))

    assert failure.value.code == "node_failed"


async def test_a_conversation_remembers_what_was_said():
    async with answering(lambda asked: _chunks({"content": "Hello."})) as server:
        talk = Talk(server.url, "key", "m", "Be brief.")
        await talk.ask("Hi", aloud=False)
        said = await talk.ask("And now?", aloud=False)

    assert said["content"] == "Hello."
    assert server.asked[0].headers["authorization"] == "Bearer key"
    assert [message["role"] for message in server.asked[1].json["messages"]] == ["system", "user", "assistant", "user"]


async def test_a_proxy_of_the_surroundings_is_not_asked_for_the_way_to_this_machine(monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with answering(lambda asked: as_json({})) as server, connect(server.url) as http:
        assert await http.call("GET", "/") == {}


async def test_a_gateway_that_is_away_is_one_sentence():
    async with connect("http://127.0.0.1:9") as http:
        with pytest.raises(CommandFailed, match=r"no answer from http://127.0.0.1:9 .*arriero status"):
            await http.call("GET", "/")


@pytest.mark.parametrize("text", ["ü", "a\nX-Other: b"])
async def test_what_no_header_can_carry_is_wrong_usage(text: str):
    with pytest.raises(CommandFailed) as failure:
        async with connect("http://127.0.0.1:9", text):
            pass
    assert failure.value.code == "usage"
    with pytest.raises(CommandFailed) as failure:
        job.submit("m", "p", idempotency_key=text)
    assert failure.value.code == "usage"


async def test_a_job_is_named_by_one_segment_whatever_is_in_it(monkeypatch: pytest.MonkeyPatch):
    async with answering(lambda asked: as_json({"state": "cancelled"})) as server:
        monkeypatch.setenv("ARRIERO_URL", server.url)
        monkeypatch.setenv("ARRIERO_API_KEY", "key")
        await asyncio.to_thread(job.cancel, "../clients/x?y#z")

    assert [(asked.path, asked.query) for asked in server.asked] == [("/jobs/../clients/x?y#z", {})]


async def test_a_watched_job_goes_on_where_its_stream_broke(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job, "next_delay", lambda previous, ran_s: 0.0)
    replies = [
        as_events(("queued", "", {}), ("token", "5.10", {"text": "Hel"}), cut=True),
        as_json({"code": "draining", "detail": "d"}, 503),
        as_events(("token", "5.20", {"text": "lo"}), ("succeeded", "5.30", {"state": "succeeded"})),
    ]
    seen: list[ServerEvent] = []
    async with answering(lambda asked: replies.pop(0)) as server:
        monkeypatch.setenv("ARRIERO_URL", server.url)
        monkeypatch.setenv("ARRIERO_API_KEY", "key")
        ending = await job.watch_job("job_1", "", seen.append)

    assert ending == "succeeded"
    assert [event.id for event in seen] == ["", "5.10", "5.20", "5.30"]
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "5.10", "5.10"]


async def test_a_job_that_is_not_there_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch):
    async with answering(lambda asked: as_json({"code": "job_not_found", "detail": "No such job."}, 404)) as server:
        monkeypatch.setenv("ARRIERO_URL", server.url)
        monkeypatch.setenv("ARRIERO_API_KEY", "key")
        with pytest.raises(CommandFailed, match="No such job"):
            await job.watch_job("job_1", "", lambda event: None)

    assert len(server.asked) == 1


def _row(job_id: str) -> dict[str, str]:
    return {"id": job_id, "state": "failed", "kind": "chat", "model": "m", "node": "n", "created_at": "now"}


async def test_a_rare_state_is_looked_for_on_as_many_pages_as_it_takes(monkeypatch: pytest.MonkeyPatch):
    """A page with no row of that state is not the end, only one without a cursor is."""
    pages = [([], "7"), ([_row("job_1")], "9"), ([], "12"), ([_row("job_2")], "20")]
    replies = [as_json({"jobs": rows, "cursor": cursor}) for rows, cursor in pages]
    async with answering(lambda asked: replies.pop(0)) as server:
        monkeypatch.setenv("ARRIERO_URL", server.url)
        monkeypatch.setenv("ARRIERO_API_KEY", "key")
        found = await job._pages(2, "", "failed")

    assert ([row["id"] for row in found["jobs"]], found["cursor"]) == (["job_1", "job_2"], "20")
    assert [asked.query.get("cursor") for asked in server.asked] == [None, "7", "9", "12"]
    assert {asked.query["state"] for asked in server.asked} == {"failed"}
    assert [asked.query["limit"] for asked in server.asked] == ["2", "2", "1", "1"]


@pytest.mark.parametrize("more", [[], ["--json"]])
async def test_a_retry_prints_the_new_jobs_id(more: list[str]):
    made = {"id": "job_2", "state": "queued", "retry_of": "job_1"}
    async with answering(lambda asked: as_json(made, 202)) as server:
        environment = {**os.environ, "ARRIERO_URL": server.url, "ARRIERO_API_KEY": "key"}
        command = [sys.executable, "-m", "libs.cli", "job", "retry", "job_1", *more]
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(30):
            said, _ = await process.communicate()

    assert [(asked.method, asked.path) for asked in server.asked] == [("POST", "/jobs/job_1/retry")]
    assert (json.loads(said) == made) if more else (said == b"job_2\n")


async def test_models_are_waited_for_until_every_node_is_known():
    known = [["a:latest"], ["a:latest"], ["a:latest", "b:1b"]]
    async with answering(lambda asked: as_json({"data": [{"id": name} for name in known.pop(0)]})) as server:
        assert await listed_models(server.url, "key", {"a:latest", "b:1b"}) == ["a:latest", "b:1b"]


class _Auth:
    """Enough of the admin API."""

    def __init__(self, *clients: str) -> None:
        self.clients = list(clients)

    def __call__(self, asked: Asked) -> Reply:
        match asked.method, asked.path:
            case "POST", "/oauth/token":
                return as_json({"access_token": "token"})
            case "GET", "/clients":
                return as_json({"clients": [{"client_id": name} for name in self.clients]})
            case "POST", "/clients":
                name = asked.json["name"]
                self.clients.append(name)
                return as_json({"client_id": name, "name": name, "client_secret": "s", "scopes": ["inference"]}, 201)
            case "POST", path if path.endswith("/keys"):
                return as_json({"api_key": f"key of {path.split('/')[2]}", "key_id": "k"}, 201)
        return as_json({}, 404)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.open()
    return home


async def test_the_demo_client_is_made_once(home: Home):
    async with answering(_Auth("operator")) as server:
        operator = Administrator(server.url, "operator", "secret")
        made = await demo_client(home, operator)
        again = await demo_client(home, operator)

    assert made == again == stored(home)
    assert made == MadeClient(
        client_id="demo", client_secret="s", api_key="key of demo", name="demo", scopes=["inference"]
    )
    assert [asked.path for asked in server.asked] == ["/oauth/token", "/clients", "/clients", "/clients/demo/keys"]
    assert b"scope=admin%3Aclients" in server.asked[0].body


async def test_a_demo_client_whose_secret_was_lost_is_followed_by_another(home: Home):
    async with answering(_Auth("demo", "demo-2")) as server:
        made = await demo_client(home, Administrator(server.url, "operator", "secret"))

    assert made.client_id == "demo-3"


def test_the_surroundings_name_a_gateway_before_the_home_does(home: Home, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ARRIERO_HOME", str(home.path))
    with pytest.raises(CommandFailed, match="no Arriero runs"):
        gateway()
    up = UpFile(gateway="http://here", auth="", nats="", client_id="", client_secret="", api_key="k", ops={}, pids={})
    home.write(home.up_json, msgspec.json.encode(up))
    assert gateway() == Gateway("http://here", "k")

    monkeypatch.setenv("ARRIERO_URL", "https://there/")
    with pytest.raises(CommandFailed, match="ARRIERO_API_KEY is not"):
        gateway()
    monkeypatch.setenv("ARRIERO_API_KEY", "other")
    assert gateway() == Gateway("https://there", "other")
