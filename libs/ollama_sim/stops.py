"""Stop strings: text that may be the beginning of one is held back until it is clear whether it is."""

from libs.ollama_sim.answers import Piece


class StopFilter:
    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held: list[Piece] = []
        self.has_stopped = False

    def feed(self, piece: Piece) -> list[Piece]:
        """The pieces that may go out now; a piece that is partly before a stop string is cut."""
        if not self._stops:
            return [piece]
        self._held.append(piece)
        text = "".join(each.text for each in self._held)
        found = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if found:
            self.has_stopped = True
            return self._take(min(found), cuts=True)
        held_back = max(_overlap(text, stop) for stop in self._stops)
        return self._take(len(text) - held_back, cuts=False)

    def flush(self) -> list[Piece]:
        """What was held back for a stop string that never came."""
        released, self._held = self._held, []
        return released

    def _take(self, length: int, *, cuts: bool) -> list[Piece]:
        released: list[Piece] = []
        while self._held and len(self._held[0].text) <= length:
            piece = self._held.pop(0)
            length -= len(piece.text)
            released.append(piece)
        if cuts and length > 0:
            released.append(Piece(self._held[0].kind, self._held[0].text[:length]))
        return released


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that is a beginning of the stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
