"""What clients saw and what was done to the fleet: one append-only list of plain facts, the checker's only input.

Every record has `what` and `t` (seconds since the run began). Answers are noted when they came, with `sent` for when they
were asked for; bytes of a stream are kept as they came (latin-1, so that JSON holds any byte).

| what     | from    | fields                                                                                             |
|----------|---------|----------------------------------------------------------------------------------------------------|
| script   | client  | n, mode, model, chat, tokens, deadline_s, key                                                       |
| call     | client  | n, op, gateway, sent, status (0: no answer), error, code, retry_after, job, view, key, other_body, known |
| opened   | client  | s, n, job, gateway, dialect (jobs, chat), purpose (live, replay), after, life                       |
| bytes    | client  | s, data                                                                                             |
| closed   | client  | s, how (cut: by the client; eof; broken), error                                                     |
| ended    | client  | n, job, state: the first time this client heard of the end                                          |
| gave_up  | client  | n, job, why                                                                                         |
| fault    | harness | id, role, kind, target, phase (begun, over), seconds                                                |
| process  | harness | name, phase (started, ready, exited), pid, code, wanted (the harness ended it)                      |
| readyz   | harness | name, status (0: no answer), problems                                                               |
| audit    | harness | job, status, view: what stands at the end                                                           |
| listed   | harness | job, state: in the owner's list at the end                                                          |
| expected | harness | job, text: what an undisturbed node answers                                                         |
| quiet    | harness | place, held: slots, runs or jobs that are still held after all work has ended                       |
| logged   | harness | process, job, epoch, state: a `job.ended` in a service's log                                        |
| complained | harness | process, event, text: what a service logged as an error; for whoever reads on                     |
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

Record = dict[str, Any]


class Book:
    """Append-only; with a path every record is also written to a file, so that a run that is cut off can be read."""

    def __init__(self, path: Path | None = None) -> None:
        self.records: list[Record] = []
        self._began = time.monotonic()
        self._file: IO[str] | None = path.open("w") if path else None
        self._streams = 0

    @property
    def now(self) -> float:
        return round(time.monotonic() - self._began, 4)

    def note(self, what: str, **facts: Any) -> Record:
        record: Record = {"what": what, "t": self.now, **facts}
        self.records.append(record)
        if self._file:
            self._file.write(json.dumps(record) + "\n")
        return record

    def new_stream(self) -> int:
        self._streams += 1
        return self._streams

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None


def read_book(path: Path) -> Iterator[Record]:
    with path.open() as lines:
        for line in lines:
            yield json.loads(line)
