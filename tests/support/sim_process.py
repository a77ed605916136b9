"""A simulated node as a process of its own, for tests that kill it."""

import subprocess
import sys


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

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)
        if self._process.stdout:
            self._process.stdout.close()
