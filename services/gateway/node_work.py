"""Model work that one node does by order of a gateway: asked again until it has ended."""

import asyncio
import time
from collections.abc import AsyncGenerator

from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away, NoResponders
from libs.common.contracts import subjects
from libs.common.contracts.codec import encode
from libs.common.contracts.control import ModelAnswer, ModelOp, ModelOrder, ModelWork, decode_model_answer
from libs.common.contracts.faults import Code, failed
from libs.common.contracts.nodes import DEAD_S, Heartbeat, canonical_model
from services.gateway.fleet import FleetView, silent_about_models
from services.gateway.policies import no_node, not_on_node

ASK_EVERY_S = 0.25
ANSWER_S = 3.0
GIVE_UP_S = 10.0  # without one answer: a worker that is started again takes a moment


class NodeWork:
    def __init__(self, bus: Bus, fleet: FleetView) -> None:
        self._bus = bus
        self._fleet = fleet

    def check(self, node: str, order: ModelOrder) -> None:
        """What can be said without asking the node. Raises Failed: NOT_FOUND, MODEL_NOT_FOUND, UNAVAILABLE."""
        beat = self._present(node)
        if order.op is not ModelOp.PULL and not has_model(beat, order.model):
            raise not_on_node(order.model, node)

    async def follow(self, node: str, order: ModelOrder) -> AsyncGenerator[ModelAnswer, None]:
        """Each answer of the node, the last one is no RUNNING. A node whose worker was started again is asked anew. Raises
        Failed: NOT_FOUND, UNAVAILABLE."""
        heard_at = time.monotonic()
        while True:
            try:
                beat = self._present(node)
                answer = decode_model_answer(
                    await self._bus.request(subjects.worker(node, beat.boot, "model"), encode(order), timeout=ANSWER_S)
                )
            except (NoResponders, Away) as error:
                if time.monotonic() - heard_at > GIVE_UP_S:
                    message = f"the worker of node {node} does not answer; look at its log, and ask again"
                    raise failed(Code.UNAVAILABLE, message, retry_after_s=5) from error
            else:
                heard_at = time.monotonic()
                yield answer
                if answer.state is not ModelWork.RUNNING:
                    return
            await asyncio.sleep(ASK_EVERY_S)

    def _present(self, node: str) -> Heartbeat:
        """Raises Failed: NOT_FOUND, UNAVAILABLE."""
        seen = self._fleet.node(node)
        if seen is None:
            raise no_node(node, [beat.node for beat, _ in self._fleet.current()])
        beat, silent = seen
        if silent >= DEAD_S:
            message = f"node {node} has been silent for {silent:.0f} s: start its worker again, then ask again"
            raise failed(Code.UNAVAILABLE, message, retry_after_s=5)
        return beat


def has_model(beat: Heartbeat, model: str) -> bool:
    """On disk or in memory; true also while the node has not said what it has."""
    name = canonical_model(model)
    names = [*(each.name for each in beat.models), *(each.name for each in beat.loaded)]
    return silent_about_models(beat) or any(canonical_model(each) == name for each in names)
