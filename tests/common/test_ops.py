"""The ops port's application by itself."""

from typing import Any

import msgspec
from structlog.testing import capture_logs

from libs.common.ops import Check, OpsApp


async def get(app: OpsApp, path: str) -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        raise AssertionError("nothing is read")

    await app({"type": "http", "path": path, "method": "GET"}, receive, send)
    start, body = sent
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
    return start["status"], body["body"]


async def test_checks_are_asked_anew_with_every_look() -> None:
    problems: dict[str, str | None] = {"a": "is broken", "b": None}
    checks: dict[str, Check] = {name: lambda name=name: problems[name] for name in problems}  # type: ignore[misc]
    app = OpsApp("tiny", checks)
    status, body = await get(app, "/readyz")
    assert (status, msgspec.json.decode(body)["problems"]) == (503, {"a": "is broken"})
    problems["a"] = None
    assert (await get(app, "/readyz"))[0] == 200
    problems["b"] = ""  # a problem without words is one all the same
    assert (await get(app, "/readyz"))[0] == 503


async def test_a_check_that_raises_is_a_problem_and_hides_no_other() -> None:
    def broken() -> str | None:
        raise RuntimeError("mine")

    app = OpsApp("tiny", {"broken": broken, "other": lambda: "also red"})
    with capture_logs() as logs:
        status, body = await get(app, "/readyz")
    assert status == 503
    assert msgspec.json.decode(body)["problems"] == {
        "broken": "the check itself failed: RuntimeError",
        "other": "also red",
    }
    assert [entry["event"] for entry in logs] == ["check.failed"]


async def test_alive_does_not_depend_on_checks() -> None:
    app = OpsApp("tiny", {"never": lambda: "red"})
    assert (await get(app, "/livez"))[0] == 200


async def test_metrics_are_in_the_text_format_and_other_paths_point_to_the_right_ones() -> None:
    app = OpsApp("tiny", {})
    status, body = await get(app, "/metrics")
    assert status == 200
    assert b"# TYPE " in body
    status, body = await get(app, "/")
    assert status == 404
    assert b"/livez, /readyz and /metrics" in body


async def test_what_is_not_http_is_left_alone() -> None:
    async def never(*_: Any) -> Any:
        raise AssertionError

    await OpsApp("tiny", {})({"type": "websocket"}, never, never)
