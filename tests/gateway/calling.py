"""Calls over NATS as a client makes them: `api.<client>.<verb>`."""

import json
from typing import Any

from libs.common.bus.connection import Bus
from libs.common.contracts.api import decode_answer


class Service:
    """An internal service: asks as itself, through inboxes of its own."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def ask(self, verb: str, payload: Any = None, *, timeout: float = 30.0) -> dict[str, Any]:
        data = payload if isinstance(payload, bytes) else b"" if payload is None else json.dumps(payload).encode()
        reply = await self.bus.request(f"api.{self.bus.user}.{verb}", data, timeout=timeout)
        decode_answer(reply)
        return dict(json.loads(reply))

    async def ok(self, verb: str, payload: Any = None) -> dict[str, Any]:
        answer = await self.ask(verb, payload)
        assert "ok" in answer, answer
        return dict(answer["ok"])

    async def fault(self, verb: str, payload: Any = None) -> dict[str, Any]:
        answer = await self.ask(verb, payload)
        assert set(answer) == {"fault"}
        return dict(answer["fault"])
