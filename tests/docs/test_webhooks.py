"""The receiver of docs/webhooks.md, as it stands there, gets what a gateway sends; and the page's figures are the code's."""

import asyncio
import ipaddress
import os
import re
import sys
import time
from pathlib import Path

from libs.common.contracts.webhooks import EventType
from services.gateway.webhooks import registry, schedule, sender, signing, under_way
from services.gateway.webhooks.sender import Outcome, Sender
from tests.support.http import free_socket
from tests.support.waiting import eventually

PAGE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
LOOPBACK = (ipaddress.ip_network("127.0.0.1/32"),)


async def test_the_receiver_takes_what_is_signed_and_nothing_else() -> None:
    bound = free_socket()
    port = bound.getsockname()[1]
    bound.close()
    secret = signing.new_secret()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", EXAMPLE, env={**os.environ, "WEBHOOK_SECRET": secret, "PORT": str(port)},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    body = b'{"type":"job.succeeded","timestamp":"2026-11-23T14:10:11.512+00:00","data":{"id":"job_1"}}'
    sending = Sender(LOOPBACK)

    async def sent(with_secret: str) -> Outcome | None:
        outcome = await sending.send(f"http://127.0.0.1:{port}/arriero", with_secret, "msg_1", body)
        return outcome if outcome.status else None

    try:
        assert (await eventually(lambda: sent(secret), within=60)).status == 204
        assert (await asyncio.wait_for(process.stdout.readline(), 20)) == b"job.succeeded job_1\n"
        again, forged = await sent(secret), await sent(signing.new_secret())
        assert again is not None
        assert forged is not None
        assert (again.status, forged.status) == (204, 400)
    finally:
        process.kill()
        rest, _ = await process.communicate()
    assert rest == b"", "what came again was taken once"


def test_its_figures_are_the_codes() -> None:
    assert f"at most {registry.MAX_WEBHOOKS}" in PAGE
    assert [f"`{event}`" for event in EventType if f"`{event}`" not in PAGE] == []
    delays = [later - at for at, later in zip(schedule.ATTEMPTS_AT, schedule.ATTEMPTS_AT[1:], strict=False)]
    assert delays[:6] == [5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600]
    assert (schedule.GIVE_UP_S, schedule.MAX_RETRY_AFTER, schedule.DISABLE_AFTER_S) == (86400, 3600, 5 * 86400)
    assert (sender.WITHIN_S, sender.MAX_ANSWER, under_way.MAX_PER_CLIENT) == (10, 65536, 10)
    assert time.gmtime(1795443012).tm_year == 2026
