"""Writing what no longer counts: the only writer of the bucket `revoked`."""

import time

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.contracts.codec import encode
from libs.common.contracts.revocations import Revocation, token_record
from libs.common.contracts.streams import REVOKED
from libs.common.credentials.revocations import Revocations
from services.auth.inspection import TokenEnd

SEEN_WITHIN_S = 2.0


class Revoker:
    """`revocations` is what this replica knows; it follows the bucket elsewhere."""

    def __init__(self, bus: Bus) -> None:
        self._bucket = Bucket(bus, REVOKED)
        self.revocations = Revocations(bus)

    async def end_token(self, end: TokenEnd) -> None:
        """Comes back after this replica knows it, too. Raises BusError; once more does no harm."""
        revocation = Revocation(client=end.client, at=int(time.time()), reason="revoked by its client")
        revision = await self._bucket.put(token_record(end.jti), encode(revocation), ttl_s=end.ttl_s)
        await self.revocations.seen(revision, within=SEEN_WITHIN_S)
