"""A node dies in the middle of an answer, and another one goes on: one stream, no gap, no repeat (DESIGN §4)."""

import json
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.support.clients import http, openai_client, parse_sse, wait_final
from tests.support.sim_process import SimProcess
from tests.support.stack import Stack, running_stack

pytestmark = pytest.mark.e2e

# One of each chat path, all of which take tools. Loads take no time and tokens some: what is shown is cut, not what is loading.
MODELS = ",".join(
    [
        "native:1=1GB:tools:native",
        "open:1=1GB:tools:template-open",
        "closed:1=1GB:tools:template-closed",
        "thinker:1=1GB:tools:thinking:parser",
    ]
)
SIM = (
    "--models",
    MODELS,
    "--seed",
    "7",
    "--slots",
    "4",
    "--disk-gbps",
    "100",
    "--decode-tps",
    "60",
    "--max-loaded",
    "9",
)


SPARE = 3  # tokens that are on their way when enough have been seen


class Fleet:
    """Two nodes that hold the same models, and an Arriero in front of them."""

    def __init__(self, stack: Stack, sims: dict[str, SimProcess]) -> None:
        self.stack = stack
        self.sims = sims

    def hold(self, after: int) -> None:
        """Of the next job nothing ends before `cut` has struck, however late this process gets to that."""
        for sim in self.sims.values():
            sim.hold(after + SPARE)


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    sims = [SimProcess(*SIM), SimProcess(*SIM)]
    try:
        urls = ",".join(sim.url for sim in sims)
        with running_stack(tmp_path_factory.mktemp("failover"), "--no-demo", "--slots", "4", "--nodes", urls) as stack:
            names = {f"local-{sim.url.rpartition(':')[2]}": sim for sim in sims}
            yield Fleet(stack, names)
    finally:
        for sim in sims:
            sim.kill()


def text_of(stream: str) -> str:
    return "".join(json.loads(e.data).get("text", "") for e in parse_sse(stream) if e.event == "token")


def thought_of(stream: str) -> str:
    return "".join(json.loads(e.data).get("thinking", "") for e in parse_sse(stream) if e.event == "token")


def cut(fleet: Fleet, client: httpx.Client, job: str, after: int, *, worker: bool) -> tuple[str, str]:
    """Read the stream, end the node (or its worker) after so many tokens; (what the one stream held, the node)."""
    got, node = "", ""
    with client.stream("GET", f"/jobs/{job}/stream") as stream:
        for piece in stream.iter_text():
            got += piece
            if not node and got.count("event: token\n") >= after:
                node = client.get(f"/jobs/{job}").json()["node"]
                for sim in fleet.sims.values():
                    sim.hold_no_more()
                fleet.stack.kill(f"worker-{node}") if worker else fleet.sims[node].kill()
    return got, node


@pytest.mark.parametrize("model", ["native:1", "open:1", "closed:1"])
def test_another_node_goes_on_from_what_was_shown(fleet: Fleet, model: str) -> None:
    """The node's process is killed; every template path is continued, whichever way fits it, to the uncut answer."""
    body = {"model": model, "messages": [{"role": "user", "content": "Go on, please. [[tokens=60]]"}]}
    with http(fleet.stack) as client:
        uncut = text_of(client.get(f"/jobs/{client.post('/jobs', json=body).json()['id']}/stream").text)
        fleet.hold(15)
        job = client.post("/jobs", json=body).json()["id"]
        got, node = cut(fleet, client, job, 15, worker=False)
        view = wait_final(client, job)
        assert (view["state"], len(view["failed_attempts"])) == ("succeeded", 1), view
        assert view["node"] != node
        assert text_of(got) == uncut == view["result"]["message"]["content"]
        assert "event: reset" not in got
        assert view["usage"]["completion_tokens"] == 61, "the counts are those of the whole answer"
        positions = [e.id for e in parse_sse(got) if e.id]
        assert len(set(positions)) == len(positions)
        # A reader that was cut off under the first epoch goes on in the second as if nothing had been.
        seen = parse_sse(got)[8]
        resumed = client.get(f"/jobs/{job}/stream", headers={"Last-Event-ID": seen.id}).text
        assert text_of(got[: got.index(seen.raw) + len(seen.raw)]) + text_of(resumed) == uncut


def test_a_killed_worker_is_continued_too_also_inside_a_thought(fleet: Fleet) -> None:
    body = {"model": "thinker:1", "messages": [{"role": "user", "content": "Think. [[think=40]] [[tokens=30]]"}]}
    with http(fleet.stack) as client:
        uncut = client.get(f"/jobs/{client.post('/jobs', json=body).json()['id']}/stream").text
        for after in (12, 55):
            fleet.hold(after)
            job = client.post("/jobs", json=body).json()["id"]
            got, _ = cut(fleet, client, job, after, worker=True)
            assert wait_final(client, job)["state"] == "succeeded"
            assert (thought_of(got).split(), text_of(got)) == (thought_of(uncut).split(), text_of(uncut))


def test_an_openai_stream_does_not_notice(fleet: Fleet) -> None:
    """The chat client sees one stream of one completion, to its regular end."""
    official = openai_client(fleet.stack)
    said, killed = "", False
    fleet.hold(30)
    with http(fleet.stack) as client:
        stream = official.chat.completions.create(
            model="native:1", messages=[{"role": "user", "content": "Chat. [[tokens=50]]"}], stream=True
        )
        reasons = []
        for chunk in stream:
            said += chunk.choices[0].delta.content or ""
            reasons.append(chunk.choices[0].finish_reason)
            if not killed and len(said.split()) > 10:
                for sim in fleet.sims.values():
                    sim.hold_no_more()
                job = stream.response.headers["arriero-job-id"]
                fleet.sims[client.get(f"/jobs/{job}").json()["node"]].kill()
                killed = True
        whole = official.chat.completions.create(
            model="native:1", messages=[{"role": "user", "content": "Chat. [[tokens=50]]"}]
        )
    assert killed
    assert said == whole.choices[0].message.content
    assert reasons[-1] == "stop"


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@pytest.mark.parametrize("model", ["native:1", "open:1"])
def test_text_is_continued_though_the_model_might_have_called_a_tool(fleet: Fleet, model: str) -> None:
    """Where a trailing message is left open, the node that goes on still reads what the model says as it should."""
    body = {"model": model, "messages": [{"role": "user", "content": "No tool. [[tokens=60]]"}], "tools": TOOLS}
    with http(fleet.stack) as client:
        uncut = text_of(client.get(f"/jobs/{client.post('/jobs', json=body).json()['id']}/stream").text)
        fleet.hold(15)
        job = client.post("/jobs", json=body).json()["id"]
        got, node = cut(fleet, client, job, 15, worker=False)
        view = wait_final(client, job)
    assert (view["state"], len(view["failed_attempts"])) == ("succeeded", 1), view
    assert view["node"] != node
    assert len(uncut.split()) > 15
    assert text_of(got) == uncut == view["result"]["message"]["content"]
    assert "event: reset" not in got
    assert view["usage"]["completion_tokens"] == 61, "the counts are those of the whole answer"


@pytest.mark.parametrize(
    ("model", "asked"), [("closed:1", "No tool. [[tokens=60]]"), ("thinker:1", "No tool. [[think=5]] [[tokens=60]]")]
)
def test_text_that_only_a_raw_prompt_continues_is_not_when_tools_are_offered(
    fleet: Fleet, model: str, asked: str
) -> None:
    """Raw, a tool call would be read as text: a clear retryable error, and nothing after what was shown."""
    body = {"model": model, "messages": [{"role": "user", "content": asked}], "tools": TOOLS}
    with http(fleet.stack) as client:
        uncut = text_of(client.get(f"/jobs/{client.post('/jobs', json=body).json()['id']}/stream").text)
        fleet.hold(20)
        job = client.post("/jobs", json=body).json()["id"]
        got, _ = cut(fleet, client, job, 20, worker=False)
        view = wait_final(client, job)
    assert (view["state"], view["error"]["code"], view["error"]["retryable"]) == ("failed", "interrupted", True), view
    assert "tools" in view["error"]["message"]
    assert parse_sse(got)[-1].event == "failed"
    assert uncut.startswith(text_of(got))
    assert text_of(got)
    assert text_of(got) != uncut


def test_what_cannot_be_continued_ends_with_a_clear_retryable_error(fleet: Fleet) -> None:
    """A JSON schema on a template that closes the message: the grammar would begin again in the middle."""
    schema = {"type": "object", "properties": {f"field{n}": {"type": "string"} for n in range(12)}}
    body = {"model": "closed:1", "messages": [{"role": "user", "content": "JSON"}], "format": schema}
    with http(fleet.stack) as client:
        fleet.hold(5)
        job = client.post("/jobs", json=body).json()["id"]
        got, _ = cut(fleet, client, job, 5, worker=False)
        view = wait_final(client, job)
    assert (view["state"], view["error"]["code"], view["error"]["retryable"]) == ("failed", "interrupted", True), view
    assert parse_sse(got)[-1].event == "failed"


def test_several_streams_at_once_all_go_on(fleet: Fleet) -> None:
    with http(fleet.stack) as client:
        bodies = [
            {"model": "native:1", "messages": [{"role": "user", "content": f"Number {n}. [[tokens=80]]"}]}
            for n in range(4)
        ]
        uncut = [text_of(client.get(f"/jobs/{client.post('/jobs', json=b).json()['id']}/stream").text) for b in bodies]
        jobs = [client.post("/jobs", json=body).json()["id"] for body in bodies]
        streams: dict[str, str] = {}

        def read(job: str) -> None:
            with http(fleet.stack) as own:
                streams[job] = own.get(f"/jobs/{job}/stream").text

        readers = [threading.Thread(target=read, args=(job,)) for job in jobs]
        for reader in readers:
            reader.start()
        _, node = cut(fleet, client, jobs[0], 10, worker=False)
        for reader in readers:
            reader.join(60)
        assert [text_of(streams[job]) for job in jobs] == uncut
        assert node
