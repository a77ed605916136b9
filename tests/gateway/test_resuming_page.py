"""The lines of docs/resuming.md, as they stand there, against a whole Arriero."""

import asyncio
import json
import os
import re
import shutil
from pathlib import Path

from tests.gateway.whole import MODEL, whole
from tests.support.nats_server import NatsServer

PAGE = Path(__file__).parents[2] / "docs" / "resuming.md"
STRICT = 'set -euo pipefail\ncurl() { command curl --fail-with-body --max-time 60 "$@"; }\n'


async def test_the_lines_of_the_page_go_on_where_a_stream_broke(nats: NatsServer, tmp_path: Path) -> None:
    lines = "".join(re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    bash = shutil.which("bash")
    assert bash
    async with whole(nats) as (gateway, client):
        environment = {
            **os.environ, "GATEWAY": gateway.url, "KEY": client.headers["authorization"].removeprefix("Bearer "), "MODEL": MODEL,
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            bash, "-c", STRICT + lines, cwd=tmp_path, env=environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(60):
            said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()

    for name, rests in (("whole", ["rest"]), ("chat", ["chat-rest", "chat-again"])):
        text = (tmp_path / f"{name}.txt").read_text()
        for rest in rests:
            after = (tmp_path / f"{rest}.txt").read_text()
            assert text.endswith(after)
            assert after.count("id: ") == text.count("id: ") - 3 > 0
    completion = json.loads((tmp_path / "completion.json").read_text())
    deltas = re.findall(r"^data: (\{.*)$", (tmp_path / "chat.txt").read_text(), re.MULTILINE)
    shown = "".join(c["delta"].get("content", "") for d in deltas for c in json.loads(d)["choices"])
    assert completion["choices"][0]["message"]["content"] == shown
