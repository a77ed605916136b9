"""Facts ride in a header: whatever text is in them, a real server gives it back, by a leader read and to a follower."""

import asyncio

from libs.common.bus.connection import Bus
from libs.common.bus.follower import Follower
from libs.common.bus.stored import Stored
from libs.common.contracts.codec import encode
from libs.common.contracts.headers import FACTS
from libs.common.contracts.jobs import Submission, decode_submission
from libs.common.contracts.requests import Kind
from libs.common.contracts.streams import JOBS

TEXTS = [
    "ümlaut 🦙",
    "a\r\nNats-TTL: 1",
    "tab\tnull\x00",
    "\x85\u2028\u2029\xa0",
    " spaces ",
    "a: b",
    '"\\',
    "\x7f\x1f",
]


def facts(text: str) -> Submission:
    return Submission(
        op_id="op", kind=Kind.CHAT, model=text, route="/jobs", deadline_s=1, result_ttl_s=1, size=0, digest="",
        metadata={text: text},
    )  # fmt: skip


async def test_facts_come_back_from_the_server_as_they_were_written(bus: Bus):
    followed: list[Stored] = []
    follower = Follower(bus, JOBS, ["jobs.*.*.new"], followed.append, headers_only=True)
    sequences = [
        (await bus.append(f"jobs.c.j{n}.new", b"", headers={FACTS: encode(facts(text)).decode()})).sequence
        for n, text in enumerate(TEXTS)
    ]
    task = asyncio.create_task(follower.run())
    async with asyncio.timeout(20):
        await follower.caught_up.wait()
    task.cancel()

    for text, sequence, seen in zip(TEXTS, sequences, followed, strict=True):
        read = await bus.at(JOBS, sequence)
        assert read is not None
        assert decode_submission(read.headers[FACTS]) == facts(text)
        assert set(read.headers) == {FACTS}
        assert decode_submission(seen.headers[FACTS]) == facts(text)
