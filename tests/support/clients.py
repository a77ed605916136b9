"""What a client of the public surface does, written as a client would write it: httpx and the official openai package."""

from typing import Any, NamedTuple

import httpx
import openai

from tests.support.stack import Stack


class Sse(NamedTuple):
    """One server-sent event, and the bytes it came in."""

    event: str
    data: str
    id: str
    raw: str


def parse_sse(text: str) -> list[Sse]:
    events = []
    for raw in text.split("\n\n"):
        fields = {"event": "message", "data": "", "id": ""}
        for line in raw.split("\n"):
            name, colon, value = line.partition(":")
            if colon and name in fields:
                fields[name] = value.removeprefix(" ")
        if raw and not raw.startswith(":"):
            events.append(Sse(**fields, raw=raw + "\n\n"))
    return events


def token(up: dict[str, Any], client: str | None = None, secret: str | None = None) -> str:
    answer = httpx.post(
        f"{up['auth']}/oauth/token",
        data={"grant_type": "client_credentials"},
        auth=(client or up["client_id"], secret or up["client_secret"]),
    )
    answer.raise_for_status()
    return str(answer.json()["access_token"])


def http(stack: Stack, credential: str | None = None, gateway: str | None = None) -> httpx.Client:
    up = stack.up
    return httpx.Client(
        base_url=gateway or up["gateway"],
        headers={"Authorization": f"Bearer {credential or up['api_key']}"},
        timeout=60,
    )


def openai_client(stack: Stack, credential: str | None = None) -> openai.OpenAI:
    up = stack.up
    return openai.OpenAI(base_url=f"{up['gateway']}/v1", api_key=credential or up["api_key"], max_retries=0, timeout=60)


def chat_models(client: httpx.Client) -> list[str]:
    """Models that answer, by a name that tells embedding models apart."""
    models = [model["id"] for model in client.get("/v1/models").json()["data"]]
    return [model for model in models if "embed" not in model]


def ask(words: int, about: str = "llamas") -> str:
    """A prompt that a simulated node answers with so many tokens; a real model just sees an odd remark."""
    return f"Tell me something about {about}. [[tokens={words}]]"


def wait_final(client: httpx.Client, job: str, within: float = 60) -> dict[str, Any]:
    view = client.get(f"/jobs/{job}", params={"wait": within}).json()
    assert view["finished_at"], f"not finished within {within} s: {view}"
    return dict(view)
