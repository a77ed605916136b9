"""What schemathesis loads (SCHEMATHESIS_HOOKS): a fresh token for each case, and what of the answers is checked beside its own
checks. It runs in schemathesis's process, not in that of the services."""

import os
import time
from base64 import b64encode
from typing import Any
from zlib import crc32

import httpx
import schemathesis

from libs.common.contracts.faults import MEANING, Code
from tests.gateway.whole import MODEL

PATIENCE_S = 60.0
NOWHERE = "https://hooks.invalid/here"  # no such name can be (RFC 6761)

# A node says so when it is asked for a model that there is not: caused by the request, and declared.
MAY_FAIL_AT_THE_NODE = {("POST", "/nodes/{node}/models"): {Code.NODE_FAILED}}

# Of made-up submits, what is kept; and what makes them whole.
_KEPT: dict[tuple[str, str], tuple[tuple[str, ...], dict[str, Any]]] = {
    ("POST", "/jobs"): (
        ("priority", "metadata", "result_ttl_s", "system", "raw", "keep_alive", "deadline_s"),
        {"prompt": "Tell me."},
    ),
    ("POST", "/v1/chat/completions"): (
        ("stream", "stream_options", "temperature", "top_p", "seed", "reasoning_effort"),
        {"messages": [{"role": "user", "content": "Tell me."}], "max_tokens": 8},
    ),
}

if token_url := os.environ.get("OPENAPI_TOKEN_URL"):
    _PROOF = os.environ["OPENAPI_CLIENT"], os.environ["OPENAPI_SECRET"]
    HTTP = httpx.Client(auth=_PROOF, timeout=60)  # kept: making one takes longer than a token
    BASIC = "Basic " + b64encode(":".join(_PROOF).encode()).decode()

    @schemathesis.auth(refresh_interval=None)
    class Tokens:
        """A run ends tokens and keys, and disables clients: each case gets a new token, as soon as there is one."""

        def get(self, case: Any, context: Any) -> str:
            form = {"grant_type": "client_credentials", "scope": "admin:clients audit:read"}
            give_up = time.monotonic() + PATIENCE_S
            while True:
                answer = HTTP.post(token_url, data=form)
                if answer.status_code == 200 or time.monotonic() > give_up:
                    return str(answer.raise_for_status().json()["access_token"])
                time.sleep(0.05)

        def set(self, case: Any, data: str, context: Any) -> None:
            case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}
            if case.path.startswith("/oauth/"):
                case.headers["Authorization"] = BASIC
            if case.path in ("/oauth/introspect", "/oauth/revoke") and isinstance(case.body, dict) and len(data) % 2:
                case.body = {"token": data}


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Three quarters of the submits become ones that a node can work on: chance alone finds no model's name, and no fields that
    go together. The others stay as they were made up."""
    body = case.body
    if (
        (case.method, case.path) == ("POST", "/webhooks")
        and isinstance(body, dict)
        and str(body.get("url")).startswith("http")
    ):
        body["url"] = NOWHERE  # a test of it must not reach whoever has the name that came up
    if (case.method, case.path) not in _KEPT or not isinstance(body, dict) or crc32(repr(body).encode()) % 4 == 0:
        return
    kept, needed = _KEPT[case.method, case.path]
    case.body = {name: body[name] for name in kept if name in body} | {"model": MODEL} | needed


@schemathesis.check
def is_no_mistake(ctx: Any, response: Any, case: Any) -> None:
    """No 5xx, but a 503 that says when to come back, and what a node did."""
    if response.status_code < 500:
        return
    body = response.json()
    code = Code(body["code"] if "code" in body else body["error"]["code"])
    assert MEANING[code].status == response.status_code
    if response.status_code == 503:
        assert response.headers.get("retry-after"), "a 503 without Retry-After"
        return
    assert code in MAY_FAIL_AT_THE_NODE.get((case.method, case.path), ()), f"{response.status_code}: {body}"


@schemathesis.check
def is_clean(ctx: Any, response: Any, case: Any) -> None:
    """What every answer has, and none (tests/edge). Also counts them."""
    assert response.headers["x-content-type-options"] == ["nosniff"]
    assert response.headers.get("x-request-id")
    assert "server" not in response.headers
    with open(os.environ["OPENAPI_SEEN"], "a") as seen:
        seen.write(f"{case.method} {case.path} {response.status_code}\n")
