"""`arriero webhook …` against a whole stack of two gateways, with NATS users that have their permissions."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook as Verifier

from tests.support.clients import chat_models, http
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = pytest.mark.e2e


class Open(Stack):
    """Its gateways may reach this machine."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"ARRIERO_GATEWAY_WEBHOOK_NETWORKS": "127.0.0.1/32"}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Open(tmp_path / "home", "--no-demo", "--gateways", "2")
    stack.start()
    try:
        yield stack
    finally:
        stack.stop()
    assert stack.overstepped() == [], "somebody asked NATS for what its user may not"


class Receiver(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.came = threading.Semaphore(0)


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()
        self.server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.server.came.release()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_end_of_a_job_reaches_its_receiver(stack: Stack, receiver: Receiver) -> None:
    url = f"http://127.0.0.1:{receiver.server_port}/hook"
    made = json.loads(stack.arriero("webhook", "create", url, "--include-result", "--json").stdout)
    tested = stack.arriero("webhook", "test", made["id"])
    assert (tested.returncode, tested.stdout) == (0, "Delivered: the receiver answered 204.\n"), tested.stderr
    assert receiver.came.acquire(timeout=60)
    with http(stack) as client:
        model = chat_models(client)[0]
    submitted = stack.arriero("job", "submit", model, "Say something.", "--webhook", made["id"], "--json")
    job = json.loads(submitted.stdout)["id"]
    assert receiver.came.acquire(timeout=60)
    headers, body = receiver.got[1]
    event = Verifier(made["secret"]).verify(body, headers)
    assert (event["type"], event["data"]["id"]) == ("job.succeeded", job)
    assert event["data"]["result"] == json.loads(stack.arriero("job", "get", job, "--json").stdout)["result"]
    listed = stack.arriero("webhook", "list").stdout
    assert made["id"] in listed
    assert made["secret"] not in listed
    trail = stack.arriero("audit", "tail", "--json").stdout
    assert "webhook.create" in trail
    assert "/hook" not in trail
    assert stack.arriero("webhook", "delete", made["id"]).returncode == 0
    gone = stack.arriero("webhook", "test", made["id"])
    assert (gone.returncode, "no such webhook" in gone.stderr) == (1, True)
    refused = stack.arriero("webhook", "create", "https://169.254.169.254/latest", "--json")
    assert json.loads(refused.stdout)["error"]["code"] == "invalid_request"
    with http(stack) as client:
        assert client.delete(f"/jobs/{job}").json()["erased"]
    assert len(receiver.got) == 2
    deleted = stack.arriero("client", "delete", stack.up["client_id"])
    assert deleted.returncode == 0, deleted.stderr
    until(lambda: any("webhooks.forgotten" in log.read_text() for log in (stack.home / "logs").glob("gateway*.log")))
