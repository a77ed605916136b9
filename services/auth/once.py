"""What may be used once only, over all replicas: a record that is created or refused (RFC 7523 §3, `jti`)."""

import secrets

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Conflict, Unconfirmed
from libs.common.contracts.streams import ATTEMPTS
from services.auth.assertions import Used


class Once:
    def __init__(self, bus: Bus) -> None:
        self._bucket = Bucket(bus, ATTEMPTS)

    async def claim(self, used: Used) -> bool:
        """Whether this is the first time. Raises BusError: then it is not known, and does not count."""
        key, mine = f"used.{used.digest}", secrets.token_bytes(16).hex().encode()
        try:
            await self._bucket.put(key, mine, expected=0, ttl_s=used.ttl_s)
        except Conflict:
            return False
        except Unconfirmed:
            if (await self._bucket.get(key))[0] != mine:
                raise
        return True
