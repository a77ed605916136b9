"""A simulated node as a process of its own, for tests that kill it."""

import subprocess
import sys
from typing import Any

import httpx


class SimProcess:
    def __init__(self, *args: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "libs.ollama_sim", "--port", "0", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout
        line = self._process.stdout.readline()
        self.url = next(word.rstrip("/.,") for word in line.split() if word.startswith("http://"))

    def hold(self, after_tokens: int) -> None:
        """The next answer says nothing more after so many tokens, and does not end: time to strike in its middle."""
        self._faults([{"kind": "hang", "after_tokens": after_tokens}])

    def hold_no_more(self) -> None:
        """Answers that begin from now on; one that is held stays so."""
        self._faults([])

    def _faults(self, faults: list[dict[str, Any]]) -> None:
        httpx.post(f"{self.url}/sim/faults", json=faults, timeout=30).raise_for_status()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)
        if self._process.stdout:
            self._process.stdout.close()
