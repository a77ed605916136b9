"""The events of `GET /jobs/{id}/stream`: the log as it comes, and before it how the job stands and what is expected."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from libs.common.contracts.codec import encode
from libs.common.contracts.control import PlaceAnswer
from libs.common.contracts.jobs import Binding
from libs.common.contracts.subjects import JobKey
from services.gateway.fleet import FleetView
from services.gateway.outlook import Outlook
from services.gateway.predictions import is_news, place_view
from services.gateway.sse import log_frames, state_frame
from services.gateway.watch import Changed, Item, Log, Reset, Watch

LOADING_S = 2.0  # between two words about a load
PLACES_S = (2.0, 15.0)  # between two looks at the queue: often for who is soon served, seldom for the many who are not


class JobEvents:
    """Of one reader. A resumed stream repeats no state, so that its bytes are those of the uncut one."""

    def __init__(self, key: JobKey, watch: Watch, outlook: Outlook, fleet: FleetView, *, resumed: bool) -> None:
        self._key = key
        self._watch = watch
        self._outlook = outlook
        self._fleet = fleet
        self._begun = resumed
        self._queued = False
        self._place: PlaceAnswer | None = None
        self._told_at = 0.0  # when that place was (monotonic)
        self._loading: Binding | None = None
        self._bound_at = 0.0

    async def frames(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._watch.items()) as items, aclosing(with_ticks(items, self._pause)) as news:
            async for item in news:
                match item:
                    case Log(position, events, _):
                        self._begun, self._queued, self._loading = True, False, None
                        yield log_frames(position, events)
                    case Reset():
                        yield state_frame("reset", b"{}")
                    case Changed():
                        yield b"" if self._begun else await self._changed(item)
                    case None:
                        if (frame := await self._later()) is not None:
                            yield frame

    async def _changed(self, change: Changed) -> bytes:
        facts, self._loading = change.facts, None
        self._queued = not isinstance(facts, Binding) or facts.node is None
        if not isinstance(facts, Binding) or facts.node is None:
            return self._tell_place(await self._outlook.place(self._key))
        bound = {"node": facts.node, "epoch": facts.epoch, "attempts": len(facts.attempts) + 1}
        shown = state_frame("bound", encode(bound))
        if facts.decision is not None and facts.decision.cold:
            self._loading = facts
            self._bound_at = time.monotonic() - max(0.0, time.time() - change.at_ms / 1000)
            shown += self._tell_load(facts)
        return shown

    def _pause(self) -> float | None:
        """Until something may be said that the folder does not tell; None: nothing."""
        if self._loading is not None:
            return LOADING_S
        return random.uniform(0.8, 1.2) * look_again_s(self._place) if self._queued else None

    async def _later(self) -> bytes | None:
        if (binding := self._loading) is not None:
            if binding.node and self._fleet.has_loaded(binding.node, binding.job.model):
                self._loading = None
                return None
            return self._tell_load(binding)
        place = await self._outlook.place(self._key)
        if is_news(self._place, place, elapsed_s=time.monotonic() - self._told_at):
            return self._tell_place(place)
        return None

    def _tell_place(self, place: PlaceAnswer | None) -> bytes:
        self._place, self._told_at = place, time.monotonic()
        return state_frame("queued", encode({"id": self._key.job} | place_view(place)))

    def _tell_load(self, binding: Binding) -> bytes:
        assert binding.decision is not None
        progress = {
            "model": binding.job.model,
            "node": binding.node,
            "elapsed_s": round(time.monotonic() - self._bound_at, 1),
            "expected_s": round(binding.decision.load_s, 1) or None,
        }
        return state_frame("loading", encode(progress))


def look_again_s(place: PlaceAnswer | None) -> float:
    """A fifth of what is left to wait, as far as anybody knows."""
    shortest, longest = PLACES_S
    left = place.start_s if place and place.start_s is not None else 5 * longest
    return min(max(left / 5, shortest), longest)


async def with_ticks(
    items: AsyncGenerator[Item, None], pause: Callable[[], float | None]
) -> AsyncGenerator[Item | None, None]:
    """The items, and None whenever `pause` seconds went by without one. While `pause` is None it costs nothing."""
    upcoming: asyncio.Future[Item] | None = None
    try:
        while True:
            try:
                patience = pause()
                if upcoming is None and patience is None:
                    yield await anext(items)
                    continue
                upcoming = upcoming or asyncio.ensure_future(anext(items))
                await asyncio.wait({upcoming}, timeout=patience)
                if not upcoming.done():
                    yield None
                    continue
                item, upcoming = upcoming.result(), None
                yield item
            except StopAsyncIteration:
                return
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
