"""The smallest service on the real runtime, run as a process by the tests: `python -m tests.common.tiny`.

Its own HTTP port does as it is told: GET /warm, /release, /fail, /warn, /stream.
"""

import asyncio
import logging
import os
import socket
import threading
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from libs.common import runtime
from libs.common.bus import link
from libs.common.bus.connection import Bus
from libs.common.runtime import Port, Running, Service, StartFailed
from libs.common.settings import ServiceSettings

log = structlog.get_logger()


class TinySettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="ARRIERO_TINY_", extra="ignore", frozen=True)

    secret: SecretStr = Field(min_length=8, description="something to keep")
    name: str = Field("tiny", description="a name", json_schema_extra={"flag": True})
    port: int = Field(0, ge=0, le=65535, description="its port")
    tags: list[str] = Field(default_factory=list, description="a list, as JSON")
    mode: str = Field("", description="what goes wrong")


class App:
    def __init__(self) -> None:
        self.warm = False
        self.port = 0  # known from the first request on
        self.released = asyncio.Event()
        self.hurried = asyncio.Event()
        self.failing = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.port = scope["server"][1]
        if path == "/stream":
            await self._stream(send)
            return
        if path == "/warm":
            self.warm = True
        elif path == "/release":
            self.released.set()
        elif path == "/fail":
            self.failing.set()
        elif path == "/warn":
            warn()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def _stream(self, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while True:
                await send({"type": "http.response.body", "body": b": here\n\n", "more_body": True})
                await asyncio.sleep(0.05)
        finally:
            log.info("stream.ended")


def warn() -> None:
    """As libraries do, from a thread of their own."""

    def in_thread() -> None:
        library = logging.getLogger("some.library")
        library.warning("it is %s", "late")
        library.warning("%d arguments that do not fit", "no")
        library.warning("cannot reach nats://me:hunter2@there:4222")
        library.info("not of interest")
        warnings.warn("old-fashioned", UserWarning, stacklevel=1)
        try:
            raise ValueError("inside")
        except ValueError:
            library.exception("it broke")

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return port != 0 and probe.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def resource(name: str, app: App) -> AsyncIterator[None]:
    log.info("resource.entered", name=name)
    try:
        yield
    finally:
        log.info("resource.left", name=name, listening=listening(app.port))


@asynccontextmanager
async def start(settings: TinySettings, bus: Bus) -> AsyncIterator[Running]:
    app = App()

    async def endless() -> None:
        log.info("task.began")
        try:
            await app.failing.wait()
            raise RuntimeError("told to fail")
        finally:
            log.info("task.ended")

    async def drain() -> None:
        log.info("drain.began")
        if settings.mode == "drain fails":
            raise RuntimeError("cannot drain")
        try:
            if settings.mode == "hurries":
                await app.hurried.wait()
                log.info("drain.hurries")
            await app.released.wait()
        finally:
            log.info("drain.ended", released=app.released.is_set())

    async with resource("outer", app), resource("inner", app):
        if settings.mode == "start fails":
            raise StartFailed("the weather is bad: wait")
        if settings.mode == "start hangs":
            await asyncio.Event().wait()
        if settings.mode == "bus fails":
            await bus.request("nobody")
        yield Running(
            tasks={"endless": endless()},
            ports=[Port(app, "127.0.0.1", settings.port)],
            checks={"warm": lambda: None if app.warm else "not warm yet"},
            drain=drain if settings.mode != "no drain" else None,
            hurry=app.hurried.set if settings.mode == "hurries" else None,
        )


SERVICE = Service(name="tiny", about="A service for tests.", settings=TinySettings, start=start)


def main() -> None:
    link.FIRST_CONNECT_S = float(os.environ.get("TINY_CONNECT_LIMIT", link.FIRST_CONNECT_S))
    runtime.DRAIN_SLACK_S = float(os.environ.get("TINY_DRAIN_SLACK", runtime.DRAIN_SLACK_S))
    runtime.main(SERVICE)


if __name__ == "__main__":
    main()
