"""Watches a stuck node: asks the model that fell silent for one token, now and then, until it answers.

The question is the worker's own, never a prompt of anybody's. It may wait as long as a run: behind a wedged engine the very next
request makes Ollama load the model anew (ollama-facts.md §3.4), and leaving early would abort that load.
"""

import asyncio
import time

import msgspec
import structlog

from services.worker.endings import Finished, Rejected
from services.worker.health import Health, Probe
from services.worker.ollama import Ollama
from services.worker.patience import Expected, Patience
from services.worker.presence import Inventory

log = structlog.get_logger()

LOOK_S = 0.5
CLOSE_S = 2.0
BUSY = (429, 503)  # says nothing of the engine


class Canary:
    def __init__(self, ollama: Ollama, inventory: Inventory, health: Health, *, patience: float) -> None:
        self._ollama = ollama
        self._inventory = inventory
        self._health = health
        self._scale = patience

    async def watch(self) -> None:
        """Endless; one question at a time."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._inventory.problem:
                continue  # it does not even answer that
            if (probe := self._health.due(time.monotonic())) is not None:
                answered = await self._ask(probe)
                log.info("canary", model=probe.model, answered=answered, bystander=probe.bystander)
                self._health.probed(probe, answered=answered, now=time.monotonic())

    async def _ask(self, probe: Probe) -> bool | None:
        """See Health.probed."""
        asking = asyncio.create_task(self._first_sign(probe))
        patience = Patience(Expected(), since=time.monotonic(), scale=self._scale)
        try:
            while not asking.done():
                now = time.monotonic()
                patience.look(now, in_memory=self._inventory.in_memory(probe.model))
                left = patience.left(now, self._health.others(probe))
                if not self._health.is_wanted(probe):
                    return None
                if left <= 0:
                    return False
                await asyncio.wait([asking], timeout=min(left, LOOK_S))
            return asking.result()
        finally:
            asking.cancel()
            await asyncio.wait([asking], timeout=CLOSE_S)

    async def _first_sign(self, probe: Probe) -> bool | None:
        """True: a token; of the stuck model an error will do, too: what speaks is not stuck, failures are counted elsewhere."""
        stream = self._ollama.stream(*self._question(probe))
        try:
            async for item in stream:
                if isinstance(item, list | Finished):
                    return True
                return True if isinstance(item, Rejected) and item.status not in BUSY and not probe.bystander else None
            return None
        finally:
            await stream.aclose()

    def _question(self, probe: Probe) -> tuple[str, bytes]:
        """Without `keep_alive`, so that the model leaves memory when it would have; with the options it was loaded with."""
        options = dict(probe.options)
        if probe.bystander and (context := self._inventory.context_of(probe.model)):
            options["num_ctx"] = context
        if self._inventory.only_embeds(probe.model):
            return "/api/embed", msgspec.json.encode({"model": probe.model, "input": "a", "options": options})
        options["num_predict"] = 1
        body = {"model": probe.model, "prompt": "a", "raw": True, "stream": True, "options": options}
        return "/api/generate", msgspec.json.encode(body)
