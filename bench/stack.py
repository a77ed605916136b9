"""A whole Arriero as processes, for benchmarks."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any


@contextlib.asynccontextmanager
async def running_stack(folder: Path, port: int, *arguments: str, **environment: str) -> AsyncIterator[dict[str, Any]]:
    """`arriero up` with a home in `folder`; its up.json once all is ready. Raises RuntimeError with the end of its output."""
    home = folder / "home"
    with (folder / "arriero.log").open("wb") as said:
        arriero = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "libs.cli", "up", "--port-base", str(port), "--no-demo", "--log-level", "info", *arguments],
            env=os.environ | {"ARRIERO_HOME": str(home)} | environment, stdout=said, stderr=said,
        )  # fmt: skip
    try:
        while not (home / "up.json").exists():
            if arriero.returncode is not None:
                raise RuntimeError((folder / "arriero.log").read_text()[-2000:])
            await asyncio.sleep(0.1)
        yield json.loads((home / "up.json").read_text())
    finally:
        if arriero.returncode is None:
            arriero.terminate()
            await asyncio.wait_for(arriero.wait(), 60)
