"""A connection of one internal service to Arriero, over NATS and nothing else (docs/nats.md)."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import structlog

from libs.client.calls import Calls, view_of
from libs.client.errors import ArrieroError, NotConnected, SubmitUnconfirmed
from libs.client.job import Job
from libs.client.stream import Stream
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away, BusError
from libs.common.bus.tls import Tls
from libs.common.contracts.subjects import token

CONNECT_S = 10.0
SUBMIT_S = 15.0  # of trying; one try is at most calls.TRY_S
PATIENCE_S = 60.0
LOOK_S = 0.1  # NATS refuses a question by telling the connection, not the question
PAGE = 100  # of a listing

# To the program's own `logging`, where it wants it; nothing is printed.
logging.getLogger("arriero").addHandler(logging.NullHandler())
_LOGGER = structlog.wrap_logger(
    logging.getLogger("arriero.client"),
    processors=[structlog.stdlib.render_to_log_kwargs],
    wrapper_class=structlog.stdlib.BoundLogger,
)

# Surely not done: nobody was there, or the gateway refused to begin.
_NOTHING_DONE = frozenset({"no_gateway", "not_connected", "draining"})


class Arriero:
    """`async with Arriero.connect(…) as arriero: job = await arriero.submit(model=…, messages=[…])`"""

    def __init__(self, bus: Bus, client: str, *, patience: float = PATIENCE_S) -> None:
        self._bus = bus
        self._calls = Calls(bus, client)
        self._patience = patience
        self._streams: set[Stream] = set()
        bus.on_reconnect(self._wake_streams)

    @staticmethod
    @contextlib.asynccontextmanager
    async def connect(
        servers: str | list[str],
        *,
        client: str,
        user: str = "",
        password: str = "",
        nkey_seed: str = "",
        tls: Tls | None = None,
        timeout: float = CONNECT_S,
        patience: float = PATIENCE_S,
    ) -> AsyncIterator["Arriero"]:
        """`client` as `arriero client create` named it; `user` is the same unless your NATS has other names.

        `nkey_seed`: what `arriero client create NAME --nats` wrote into its file; `password` is for a NATS with users of its own.
        `tls`: files for `tls://` URLs, where this machine's authorities do not do. `patience`: seconds for which streams and
        waits bear that NATS or all gateways are away. Raises NotConnected.
        """
        token(client, "client")
        bus = Bus(client, logger=_LOGGER)
        where = [servers] if isinstance(servers, str) else servers
        try:
            await bus.open(
                where,
                login=user,
                password=password,
                nkey_seed=nkey_seed,
                tls=tls,
                name=f"arriero-client-{client}",
                within=timeout,
                first="",
            )
            arriero = Arriero(bus, client, patience=patience)
            closing = asyncio.create_task(arriero._closed(), name="arriero.closed")
        except Away as error:
            raise NotConnected(str(error), retryable=True) from error
        try:
            await arriero._first_question(timeout)
            yield arriero
        finally:
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            await bus.close()

    async def submit(
        self,
        *,
        model: str,
        messages: list[dict[str, Any]] | None = None,
        prompt: str | None = None,
        input: str | list[str] | None = None,  # as the API names it
        idempotency_key: str | None = None,
        timeout: float = SUBMIT_S,
        **more: Any,
    ) -> Job:
        """A new job: `messages` for a chat, `prompt` to generate, `input` to embed; `more` is whatever else `POST /jobs` takes.

        With an `idempotency_key` it is sent again until it is confirmed, and it is one job however often it is sent. Without one
        a submit of which nothing is known raises SubmitUnconfirmed. Raises ArrieroError, of the kind that its code names.
        """
        body = {"model": model, "messages": messages, "prompt": prompt, "input": input, **more}
        payload: dict[str, Any] = {"job": {name: value for name, value in body.items() if value is not None}}
        if idempotency_key is not None:
            payload["idempotency_key"] = idempotency_key

        def may_repeat(error: ArrieroError) -> bool:
            if error.code in _NOTHING_DONE:
                return True
            return idempotency_key is not None and error.code in ("no_answer", "submit_unconfirmed", "unavailable")

        try:
            ok = await self._calls.surely("submit", payload, within=timeout, may_repeat=may_repeat)
        except ArrieroError as error:
            if error.code != "no_answer":
                raise
            message = "no gateway said whether the job was stored"
            raise SubmitUnconfirmed(message, retryable=idempotency_key is not None) from error
        view = view_of(ok)
        return Job(self._calls, self._streams, view["id"], view, patience=self._patience)

    def job(self, job: str) -> Job:
        """A job of this client by its id; nothing is asked yet. Raises ValueError of what can be no id."""
        return Job(self._calls, self._streams, job, patience=self._patience)

    async def list(self, *, state: str | None = None) -> AsyncGenerator[dict[str, Any], None]:
        """This client's jobs, oldest first, in the short form of `GET /jobs`. Raises ArrieroError."""
        cursor = None
        while True:
            wish = {"cursor": cursor, "limit": PAGE, "state": state}
            page = view_of(await self._calls.surely("list", wish, within=self._patience))
            for row in page["jobs"]:
                yield row
            cursor = page["cursor"]
            if cursor is None:
                return

    async def _first_question(self, timeout: float) -> None:
        """May this user ask as this client? A verb that no gateway has is answered at once, or by NATS if none is there. (And two
        first requests at once would each make an inbox.)"""
        asking = asyncio.ensure_future(self._bus.request(f"api.{self._calls.client}.hello", timeout=timeout))
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=LOOK_S)
                if "permissions violation" in self._bus.complaint.lower():
                    said = self._bus.complaint
                    raise NotConnected(f"NATS does not let this user ask as the client {self._calls.client}: {said}")
            with contextlib.suppress(BusError):  # no gateway is there at the moment
                asking.result()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _closed(self) -> None:
        await self._bus.lost.wait()
        self._wake_streams()

    def _wake_streams(self) -> None:
        for stream in self._streams:
            stream.look_again()
