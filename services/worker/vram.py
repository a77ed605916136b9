"""How much GPU memory the node has: as its owner says, else as nvidia-smi does.

Ollama tells nobody (ollama-facts.md §3.6: /api/ps has what models take, not what there is).
"""

import asyncio
import contextlib
import re
import shutil
from urllib.parse import urlsplit

import structlog

log = structlog.get_logger()

ASK = ("--query-gpu=memory.total", "--format=csv,noheader,nounits")
ASK_S = 5.0  # a driver that starts up takes one or two
MIB = 1024**2
LOCAL = {"127.0.0.1", "localhost", "::1"}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|GiB|MB|MiB)", re.IGNORECASE | re.ASCII)
_UNITS = {"gb": 10**9, "gib": 1024**3, "mb": 10**6, "mib": MIB}


class BadSize(ValueError):
    pass


def parse_size(text: str) -> int | None:
    """Bytes; None for an empty text: not known. Raises BadSize."""
    text = text.strip()
    if not text:
        return None
    if text == "0":
        return 0
    if (found := _SIZE.fullmatch(text)) is None:
        raise BadSize(f"{text!r} is no size: write 24GB, 24GiB, or 0 for a node without a GPU")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def read_answer(text: str) -> int | None:
    """Bytes of all GPUs together, from one line of MiB for each; None when it is anything else ("[N/A]", an error)."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or not all(line.isascii() and line.isdigit() for line in lines):
        return None
    return sum(int(line) for line in lines) * MIB


async def vram_of(setting: str, node_url: str, *, program: str = "nvidia-smi") -> int | None:
    """What the heartbeat says: the setting; else what nvidia-smi says of this machine, if the Ollama is on it."""
    said = parse_size(setting)
    if said is not None or urlsplit(node_url).hostname not in LOCAL or shutil.which(program) is None:
        return said
    found = read_answer(await _output(program))
    log.info("vram.detected", bytes=found) if found is not None else log.warning("vram.unknown", program=program)
    return found


async def _output(program: str) -> str:
    """Empty when it fails, or takes too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            program, *ASK, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return ""
    try:
        async with asyncio.timeout(ASK_S):
            said, _ = await process.communicate()
        return said.decode(errors="replace") if process.returncode == 0 else ""
    except TimeoutError:
        return ""
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
