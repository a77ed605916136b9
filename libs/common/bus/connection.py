"""The streams and buckets of JetStream, over a link that heals itself."""

import asyncio
from typing import Any

import msgspec

from libs.common.bus.failures import Away, BusError, NoResponders, Unconfirmed, refusal
from libs.common.bus.link import REQUEST_TIMEOUT_S, Headers, Link, Message
from libs.common.bus.stored import Ack, Stored, decode_ack, decode_stored, from_direct

WRITE_TIMEOUT_S = 5.0  # leader elections took 1.7 to 4.7 s after a kill -9 (nats-jetstream.md P7)


class Bus(Link):
    """A write whose ack did not come is `Unconfirmed`, never "failed" (nats-jetstream.md P7)."""

    async def append(
        self, subject: str, payload: bytes = b"", *, headers: Headers | None = None, timeout: float = WRITE_TIMEOUT_S
    ) -> Ack:
        """One acked publish into whichever stream holds `subject`.

        Raises Conflict, Full, Refused: not stored. NoResponders: not stored, no leader at the moment. Away: not sent.
        Unconfirmed: perhaps stored.
        """
        if not self.connected:
            raise Away("not connected to NATS")  # P7: what is buffered now would land after the caller gave up
        try:
            msg = await self._ask(subject, payload, timeout, headers=headers)
        except Away as error:
            raise Unconfirmed(f"no ack: {error}") from error
        try:
            return decode_ack(msg.data)
        except msgspec.DecodeError as error:
            raise Unconfirmed(f"unreadable ack for {subject}") from error

    async def api(self, subject: str, body: Any = None, *, timeout: float = WRITE_TIMEOUT_S) -> dict[str, Any]:
        """A call of the JetStream API, such as "STREAM.INFO.JOBS". Raises Refused (and kin), NoResponders, Away."""
        payload = b"" if body is None else msgspec.json.encode(body)
        answer: dict[str, Any] = msgspec.json.decode((await self._ask(f"$JS.API.{subject}", payload, timeout)).data)
        if error := answer.get("error"):
            raise refusal(error.get("err_code", 0), error.get("description", ""))
        return answer

    async def last(self, stream: str, subject: str) -> Stored | None:
        """The newest message on `subject` (wildcards allowed), read from the stream's leader."""
        return await self._get(stream, {"last_by_subj": subject})

    async def at(self, stream: str, sequence: int) -> Stored | None:
        """The message with that sequence, read from the leader."""
        return await self._get(stream, {"seq": sequence})

    async def last_of_each(
        self, stream: str, subjects: list[str], *, timeout: float = REQUEST_TIMEOUT_S
    ) -> list[Stored]:
        """The newest message on each subject, by one direct get (ADR-31): cheap, from any replica, so perhaps stale."""
        if not subjects:
            return []
        return await self._direct(stream, {"multi_last": subjects}, timeout)

    async def newest_of(self, stream: str, subject: str) -> Stored | None:
        """The newest message on exactly this subject, perhaps stale. What is asked for stands in the request's subject, so a user
        can be allowed to read just these (ADR-31)."""
        msg = await self._ask(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", REQUEST_TIMEOUT_S)
        headers = dict(msg.headers or {})
        if (status := headers.get("Status")) is None:
            return from_direct(Message(msg.subject, msg.data, headers, ""))
        if status == "404":
            return None
        raise NoResponders(f"direct get on {stream}: status {status}")

    async def from_sequence(
        self, stream: str, subject: str, sequence: int = 1, *, batch: int = 1000, timeout: float = REQUEST_TIMEOUT_S
    ) -> list[Stored]:
        """Up to `batch` messages on `subject` in order, by one direct get."""
        return await self._direct(stream, {"next_by_subj": subject, "seq": sequence, "batch": batch}, timeout)

    async def _direct(self, stream: str, body: dict[str, Any], timeout: float) -> list[Stored]:
        if not self.connected:
            raise Away("not connected to NATS")
        found: list[Stored] = []
        ended: asyncio.Future[BusError | None] = asyncio.get_running_loop().create_future()

        def receive(message: Message) -> None:
            status = message.headers.get("Status")
            if status is None:
                found.append(from_direct(message))
            elif not ended.done():
                fine = status in ("204", "404")
                ended.set_result(None if fine else NoResponders(f"direct get on {stream}: status {status}"))

        inbox = self._client.new_inbox()
        subscription = await self.subscribe(inbox, receive)
        try:
            await self.publish(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(body), reply=inbox)
            async with asyncio.timeout(timeout):
                failure = await ended
        except TimeoutError as error:
            raise Away(f"direct get on {stream}: no answer in {timeout} s") from error
        finally:
            await subscription.stop()
        if failure:
            raise failure
        return found

    async def _get(self, stream: str, body: dict[str, Any]) -> Stored | None:
        msg = await self._ask(f"$JS.API.STREAM.MSG.GET.{stream}", msgspec.json.encode(body), WRITE_TIMEOUT_S)
        return decode_stored(msg.data)
