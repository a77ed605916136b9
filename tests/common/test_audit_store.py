"""The stream under the trail: what nats-server itself refuses, and that what was done behind its back is found and named."""

import asyncio
import os
import signal
import sys

import pytest
from joserfc.jwk import ECKey

from libs.common.audit import Audit
from libs.common.audit.chain import CHECKPOINTS
from libs.common.audit.heads import Heads
from libs.common.audit.lines import Entry
from libs.common.audit.statements import sign
from libs.common.audit.verify import Report, Verifier, checkpoint_record, next_checkpoint
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Refused
from libs.common.bus.provision import create_missing
from libs.common.bus.stored import Stored
from libs.common.contracts.audit import Statement
from libs.common.contracts.codec import encode
from libs.common.contracts.streams import AUDIT
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

KEY = ECKey.generate_key("P-256", {"alg": "ES256", "use": "sig"}, auto_kid=True)


async def write(bus: Bus, writer: str, count: int) -> None:
    audit = Audit(bus, "gateway", writer)
    task = asyncio.create_task(audit.run())
    for n in range(count):
        audit.record("client.create", "allowed", actor="operator", target=f"target-{n:04}")
    await audit.close(within=30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def checkpoint(bus: Bus) -> str:
    """What auth keeps beside the trail."""
    heads = Heads()
    for message in await bus.from_sequence(AUDIT, "audit.>"):
        heads.add(message.subject, message.sequence, message.data)
    since, upto, told = heads.statement_part()
    statement, link = next_checkpoint(None, Statement(n=1, at_ms=1, since=since, upto=upto, heads=told))
    signed = sign(statement, KEY)
    await bus.append(f"audit.{CHECKPOINTS}", encode(checkpoint_record(statement, link.sequence, signed)))
    return signed


async def everything(bus: Bus) -> tuple[list[Stored], int]:
    state = (await bus.api(f"STREAM.INFO.{AUDIT}"))["state"]
    return await bus.from_sequence(AUDIT, "audit.>"), int(state["last_seq"])


async def verified(bus: Bus, kept: str = "") -> Report:
    found, last = await everything(bus)
    verifier = Verifier({str(KEY.kid): KEY})
    for message in found:
        verifier.add(Entry(message.sequence, message.subject, message.at_ms, message.data))
    return verifier.finish(last, kept)


async def test_not_even_a_user_who_may_do_everything_can_take_a_record_out(bus: Bus) -> None:
    await write(bus, "w1", 3)
    config = (await bus.api(f"STREAM.INFO.{AUDIT}"))["config"]
    for subject, body in (
        (f"STREAM.MSG.DELETE.{AUDIT}", {"seq": 2}),
        (f"STREAM.PURGE.{AUDIT}", None),
        (f"STREAM.PURGE.{AUDIT}", {"filter": "audit.gateway.w1"}),
        (f"STREAM.UPDATE.{AUDIT}", {**config, "deny_delete": False}),
        (f"STREAM.UPDATE.{AUDIT}", {**config, "deny_purge": False}),
    ):
        with pytest.raises(Refused):
            await bus.api(subject, body)
    for headers in ({"Nats-Rollup": "all"}, {"Nats-Rollup": "sub"}):
        with pytest.raises(Refused):
            await bus.append("audit.gateway.w1", b"{}", headers=headers)

    assert len((await everything(bus))[0]) == 5
    assert (await verified(bus)).problems == []


@pytest.mark.parametrize("with_index", [True, False])
async def test_a_record_changed_in_the_servers_files_is_found(nats: NatsServer, with_index: bool) -> None:
    """nats-server keeps a checksum of each message: an altered one is not given out, but gone (and with its index, all behind
    it, the checkpoints too: then what auth keeps beside the trail tells)."""
    async with connected(nats) as bus:
        await write(bus, "w1", 30)
        kept = await checkpoint(bus)
        target = next(message for message in (await everything(bus))[0] if b"target-0012" in message.data)
    await nats.stop()
    blocks = [path for path in (nats.folder / "store").rglob("*.blk") if b"target-0012" in path.read_bytes()]
    (block,) = blocks
    content = block.read_bytes()
    assert content.count(b"target-0012") == 1
    block.write_bytes(content.replace(b"target-0012", b"target-9912"))
    if not with_index:
        for index in block.parent.glob("index.db"):
            index.unlink()
    await nats.start()
    async with connected(nats) as bus:
        report = await verified(bus, kept)
        found, last = await everything(bus)

    (problem,) = report.problems
    assert (problem.kind, problem.sequence) == ("missing" if with_index else "cut off", target.sequence), (
        len(found),
        last,
    )


async def test_a_stream_written_anew_with_one_record_changed_is_found(bus: Bus) -> None:
    """What a user with all rights can do: delete the stream, make it again, store everything once more, a little different."""
    await write(bus, "w1", 10)
    await write(bus, "w2", 10)
    await checkpoint(bus)
    found, _ = await everything(bus)
    await bus.api(f"STREAM.DELETE.{AUDIT}")
    await create_missing(bus)
    target = next(message for message in found if b"target-0007" in message.data)
    for message in found:
        data = message.data.replace(b"operator", b"somebody") if message is target else message.data
        await bus.append(message.subject, data)
    report = await verified(bus)

    (problem,) = report.problems
    assert (problem.kind, problem.sequence, problem.n, problem.writer) == ("altered", target.sequence, 9, "gateway.w1")


async def test_a_stream_written_anew_without_some_records_is_found(bus: Bus) -> None:
    """The newest of a chain, before the checkpoint: nothing in the chain itself misses them."""
    await write(bus, "w1", 10)
    await checkpoint(bus)
    found, _ = await everything(bus)
    await bus.api(f"STREAM.DELETE.{AUDIT}")
    await create_missing(bus)
    for message in [*found[:8], found[-1]]:
        await bus.append(message.subject, message.data)
    report = await verified(bus)

    assert ("missing", 12, "gateway.w1", 12) in {tuple(problem)[:4] for problem in report.problems}


async def test_two_writers_and_a_kill_leave_two_chains(nats: NatsServer, bus: Bus) -> None:
    """kill -9 in the middle of writing: the chain ends where it ended, and the next life begins one of its own."""

    program = f"""
import asyncio
from libs.common.audit import Audit
from libs.common.bus.connection import Bus
async def main():
    bus = Bus("")
    await bus.open([{nats.url!r}])
    audit = Audit(bus, "gateway", "killed")
    task = asyncio.create_task(audit.run())
    n = 0
    while True:
        n += 1
        audit.record("client.create", "allowed", target=str(n))
        await asyncio.sleep(0)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    await eventually(lambda: _has(bus, "killed", 200))
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    await write(bus, "next", 5)
    report = await verified(bus)

    assert report.problems == []
    assert {writer.writer: writer.ended for writer in report.writers} == {"gateway.killed": False, "gateway.next": True}


async def _has(bus: Bus, writer: str, count: int) -> bool:
    newest = await bus.last(AUDIT, f"audit.gateway.{writer}")
    return newest is not None and newest.sequence >= count
