"""Writing the trail against a real nats-server: in order, once each, whatever NATS does meanwhile."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from libs.common.audit import Audit, Result
from libs.common.audit.chain import START, STOP, digest
from libs.common.audit.folding import MAX_REFUSED, TOO_MANY
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError, Unconfirmed
from libs.common.bus.stored import Stored
from libs.common.contracts.audit import AuditRecord, decode_audit
from libs.common.contracts.streams import AUDIT
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually


@contextlib.asynccontextmanager
async def writing(audit: Audit) -> AsyncIterator[Audit]:
    task = asyncio.create_task(audit.run())
    try:
        yield audit
    finally:
        task.cancel()
        ended = await asyncio.gather(task, return_exceptions=True)
        assert not [e for e in ended if isinstance(e, Exception)], ended


async def stored(bus: Bus, subject: str = "audit.>") -> list[Stored]:
    return await bus.from_sequence(AUDIT, subject)


async def records(bus: Bus, subject: str = "audit.>") -> list[AuditRecord]:
    return [decode_audit(message.data) for message in await stored(bus, subject)]


async def until(bus: Bus, count: int, subject: str = "audit.>") -> list[AuditRecord]:
    async def there() -> list[AuditRecord] | None:
        with contextlib.suppress(BusError):
            found = await records(bus, subject)
            return found if len(found) >= count else None
        return None

    found: list[AuditRecord] = await eventually(there, within=30)
    return found


def assert_chained(messages: list[Stored]) -> None:
    last, sequence = "", 0
    for n, message in enumerate(messages, 1):
        record = decode_audit(message.data)
        assert (record.n, record.previous, record.after) == (n, last, sequence)
        last, sequence = digest(message.data), message.sequence


async def test_a_life_is_a_chain_with_a_beginning_and_an_end(bus: Bus):
    audit = Audit(bus, "gateway", "w1", clock=lambda: 12.5)
    running = asyncio.create_task(audit.run())
    audit.record(
        "client.create", "allowed", actor="operator", credential="token:1", address="192.0.2.7", target="demo",
        reason="asked", request_id="req_1",
    )  # fmt: skip
    await until(bus, 2)
    await audit.close(within=30)
    running.cancel()

    found = await stored(bus)
    assert [message.subject for message in found] == ["audit.gateway.w1"] * 3
    assert_chained(found)
    assert [record.action for record in await records(bus)] == [START, "client.create", STOP]
    made = decode_audit(found[1].data)
    assert made == AuditRecord(
        n=2, previous=digest(found[0].data), after=found[0].sequence, at_ms=12500, action="client.create",
        actor="operator", credential="token:1", address="192.0.2.7", target="demo", result=Result.ALLOWED,
        reason="asked", request_id="req_1",
    )  # fmt: skip


async def test_two_writers_at_once_have_a_chain_each(nats: NatsServer, bus: Bus):
    async with (
        connected(nats) as other,
        writing(Audit(bus, "gateway", "w1")) as one,
        writing(Audit(other, "gateway", "w2")) as two,
    ):
        for n in range(200):
            one.record("model.pull", "allowed", target=f"a{n}")
            two.record("model.pull", "allowed", target=f"b{n}")
        await until(bus, 402)

    for writer, letter in (("w1", "a"), ("w2", "b")):
        found = await stored(bus, f"audit.gateway.{writer}")
        assert_chained(found)
        assert [decode_audit(message.data).target for message in found[1:]] == [f"{letter}{n}" for n in range(200)]


async def test_what_happens_during_an_outage_is_written_once_each_in_order(nats: NatsServer, bus: Bus):
    async with writing(Audit(bus, "gateway", "w1")) as audit:
        for n in range(60):
            audit.record("model.pull", "allowed", target=str(n))
            if n == 20:
                await nats.kill()  # with records on their way
            if n == 40:
                await nats.start()
            await asyncio.sleep(0.005)
        await until(bus, 61)

    found = await stored(bus)
    assert_chained(found)
    assert [decode_audit(message.data).target for message in found[1:]] == [str(n) for n in range(60)]


async def test_a_lost_ack_writes_nothing_twice(bus: Bus, monkeypatch):
    append, lose = bus.append, 3

    async def deaf(subject, payload=b"", *, headers=None, timeout=5.0):
        nonlocal lose
        ack = await append(subject, payload, headers=headers, timeout=timeout)
        if lose and subject.startswith("audit."):
            lose -= 1
            raise Unconfirmed("no ack")
        return ack

    monkeypatch.setattr(bus, "append", deaf)
    async with writing(Audit(bus, "gateway", "w1")) as audit:
        for n in range(5):
            audit.record("model.pull", "allowed", target=str(n))
        await until(bus, 6)

    assert lose == 0
    found = await stored(bus)
    assert len(found) == 6
    assert_chained(found)


async def test_a_stale_read_after_a_lost_ack_writes_nothing_twice(bus: Bus, monkeypatch):
    """A replica that lags behind says the record is not there; the write is tried again, refused, and read once more."""
    append, newest_of, lost, lied = bus.append, bus.newest_of, [], []

    async def deaf(subject, payload=b"", *, headers=None, timeout=5.0):
        ack = await append(subject, payload, headers=headers, timeout=timeout)
        if b'"target":"1"' in payload and not lost:
            lost.append(1)
            raise Unconfirmed("no ack")
        return ack

    async def stale(stream, subject):
        if len(lied) < 3:
            lied.append(1)
            return await bus.at(AUDIT, 2)
        return await newest_of(stream, subject)

    monkeypatch.setattr(bus, "append", deaf)
    monkeypatch.setattr(bus, "newest_of", stale)
    async with writing(Audit(bus, "gateway", "w1")) as audit:
        for n in range(4):
            audit.record("model.pull", "allowed", target=str(n))
        await until(bus, 5)

    assert (len(lost), len(lied)) == (1, 3)
    found = await stored(bus)
    assert len(found) == 5
    assert_chained(found)


async def test_a_foreign_record_in_the_chain_does_not_stop_it(bus: Bus):
    async with writing(Audit(bus, "gateway", "w1")) as audit:
        await until(bus, 1)
        await bus.append("audit.gateway.w1", b'{"n":2,"at_ms":1,"action":"forged","result":"allowed"}')
        audit.record("model.pull", "allowed")
        found = await until(bus, 3)

    assert [record.n for record in found] == [1, 2, 2]
    assert found[2].previous == digest((await stored(bus))[0].data)


async def test_a_full_queue_is_not_ready_and_the_next_record_says_what_was_lost(nats: NatsServer, bus: Bus):
    audit = Audit(bus, "gateway", "w1", limit=5)
    async with writing(audit):
        await until(bus, 1)
        await nats.kill()
        await eventually(lambda: not bus.connected)
        for n in range(12):
            audit.record("model.pull", "allowed", target=str(n))
        assert "5 records of the audit trail wait" in (audit.check() or "")
        await nats.start()
        await until(bus, 6)
        await eventually(lambda: audit.check() is None)
        audit.record("model.pull", "allowed", target="last")
        found = await until(bus, 7)

    assert [record.target for record in found[1:]] == ["0", "1", "2", "3", "4", "last"]
    assert sum(record.dropped for record in found) == 7


async def test_a_trail_that_cannot_be_written_is_not_ready(bus: Bus, monkeypatch):
    monkeypatch.setattr("libs.common.audit.writer.LATE_S", 0.0)
    await bus.api(f"STREAM.DELETE.{AUDIT}")
    async with writing(Audit(bus, "gateway", "w1")) as audit:
        said = await eventually(audit.check)
    assert "cannot be written" in said


async def test_equal_refusals_are_counted(bus: Bus):
    now = 0.0
    audit = Audit(bus, "gateway", "w1", clock=lambda: now)
    async with writing(audit):
        for n in range(1000):
            audit.record(
                "credential.refuse", "denied", address="192.0.2.7", reason="unauthenticated", request_id=str(n)
            )
        audit.record("credential.refuse", "denied", address="192.0.2.8", reason="unauthenticated")
        audit.record("job.submit", "allowed", actor="a", folded=True)
        audit.record("job.submit", "allowed", actor="a", folded=True)
        assert len(await until(bus, 4)) == 4
        now = 60.0
        found = await until(bus, 6)

    assert [(r.action, r.address, r.count, r.request_id) for r in found[1:]] == [
        ("credential.refuse", "192.0.2.7", 1, "0"),
        ("credential.refuse", "192.0.2.8", 1, ""),
        ("job.submit", "", 1, ""),
        ("credential.refuse", "192.0.2.7", 999, "999"),
        ("job.submit", "", 1, ""),
    ]


async def test_a_flood_of_different_refusals_is_bounded(bus: Bus):
    audit = Audit(bus, "gateway", "w1")
    async with writing(audit):
        for n in range(5000):
            audit.record("credential.refuse", "denied", address=f"10.0.{n // 250}.{n % 250}")
        audit.record("token.deny", "denied", actor="a")
        await until(bus, MAX_REFUSED + 3)
        await audit.close()
        found = await until(bus, MAX_REFUSED + 5)

    assert len(found) == MAX_REFUSED + 5
    assert sum(record.count for record in found if record.action == "credential.refuse") == 5000
    assert [r.count for r in found if r.reason == TOO_MANY] == [1, 5000 - MAX_REFUSED - 1]
    assert [r.actor for r in found if r.action == "token.deny"] == ["a"]


async def test_whatever_it_is_told_it_neither_raises_nor_writes_what_does_not_fit(bus: Bus):
    audit = Audit(bus, "gateway", "w1")
    async with writing(audit):
        audit.record("x", "nonsense")  # a mistake of ours
        audit.record("x", "denied", actor="\ud800\n\x00ü" + "x" * 10_000, address="not an address", target=None)  # type: ignore[arg-type]
        audit.record("x", "denied", actor="\ud800\n\x00ü" + "x" * 10_000, address="not an address")
        found = await until(bus, 2)

    assert len(found) == 2
    assert found[1].actor == "???ü" + "x" * 196
    assert found[1].address == ""
