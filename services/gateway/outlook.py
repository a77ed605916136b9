"""The router's word on what is to come: a job's place, and a quote for one that is not there yet."""

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.control import (
    PlaceAnswer,
    PlaceQuery,
    Quote,
    QuoteAnswer,
    decode_place_answer,
    decode_quote_answer,
)
from libs.common.contracts.jobs import Submission
from libs.common.contracts.subjects import JobKey

PLACE_S = 0.3
QUOTE_S = 2.0  # a dry run has nothing else to do
ADMISSION_S = 0.1  # a submit must not wait for an opinion


class Outlook:
    """None: nobody answers, or not in time."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def place(self, key: JobKey) -> PlaceAnswer | None:
        query = PlaceQuery(client=key.client, job=key.job)
        try:
            return decode_place_answer(
                await self._bus.request(subjects.router("place"), encode(query), timeout=PLACE_S)
            )
        except (BusError, Malformed):
            return None

    async def quote(self, client: str, submission: Submission, *, within: float) -> QuoteAnswer | None:
        query = encode(Quote(client=client, submission=submission))
        try:
            return decode_quote_answer(await self._bus.request(subjects.router("quote"), query, timeout=within))
        except (BusError, Malformed):
            return None
