"""One log per process: the last run's is kept aside, and none grows without end."""

from pathlib import Path
from typing import BinaryIO

LIMIT = 64 * 1024 * 1024
TAIL_LINES = 15
_TAIL_BYTES = 16 * 1024


class LogFiles:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rotated: set[str] = set()

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def open(self, name: str) -> BinaryIO:
        """For a child's output. The first time in this run the file of the run before becomes `.log.1`."""
        path = self.path(name)
        if name not in self._rotated:
            self._rotated.add(name)
            if path.exists() and path.stat().st_size:
                path.replace(self._aside(path))
        path.touch(mode=0o600)
        return path.open("ab", buffering=0)

    def trim(self) -> None:
        """Cuts files over the limit; what they held becomes `.log.1`. Children append, so they go on at the new end."""
        for name in self._rotated:
            path = self.path(name)
            if path.exists() and path.stat().st_size > LIMIT:
                with path.open("rb+") as file, self._aside(path).open("wb") as aside:
                    while piece := file.read(1 << 20):
                        aside.write(piece)
                    file.truncate(0)

    def tail(self, name: str) -> list[str]:
        try:
            with self.path(name).open("rb") as file:
                file.seek(max(0, self.path(name).stat().st_size - _TAIL_BYTES))
                return file.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
        except OSError:
            return []

    @staticmethod
    def _aside(path: Path) -> Path:
        return path.with_name(f"{path.name}.1")
