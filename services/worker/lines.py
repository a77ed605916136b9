"""Ollama's streamed body, cut by the network wherever it likes, as events and one ending. Pure.

Success is the terminal marker, never a mere end of the body (ollama-facts.md §2.4).
"""

from libs.common.contracts.codec import Malformed
from libs.common.contracts.events import Event
from services.worker.endings import Broke, Finished
from services.worker.translate import NodeSaid, events_of_line

MAX_LINE = 16 * 1024 * 1024  # the longest lines are final ones with `context`, or tool calls that write a file


class Lines:
    """`feed` what each read of the socket gave; with `ending` set, what still comes says nothing more."""

    def __init__(self) -> None:
        self.ending: Finished | Broke | None = None
        self._rest = bytearray()  # of a line whose end has not come yet

    def feed(self, read: bytes) -> list[Event]:
        if self.ending is not None:
            return []
        complete, newline, rest = read.rpartition(b"\n")
        if not newline:
            self._rest += read
            if len(self._rest) > MAX_LINE:
                self.ending = Broke("the node sent a line without end")
            return []
        if self._rest:
            complete = bytes(self._rest) + complete
        self._rest = bytearray(rest)
        return self._events(complete.split(b"\n"))

    def close(self) -> list[Event]:
        """The body is over: there is an ending now."""
        events = self._events([bytes(self._rest)]) if self.ending is None else []
        if self.ending is None:
            self.ending = Broke("the node's stream ended without its final line")
        return events

    def _events(self, lines: list[bytes]) -> list[Event]:
        """What came before an error counts."""
        events: list[Event] = []
        for raw in lines:
            if not raw.strip():
                continue
            try:
                found, final = events_of_line(raw)
            except (NodeSaid, Malformed) as error:
                self.ending = Broke(str(error))
                break
            events += found
            if final is not None:
                self.ending = Finished(final)
                break
        return events
