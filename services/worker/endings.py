"""What the way a run ended means for its job. Pure: every ending has exactly one outcome.

What the request itself caused ends the job; what another node might do better is given back to the router (DESIGN §3).
Texts and codes: ollama-facts.md §2.2.
"""

from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

from libs.common.contracts.faults import Code, Fault
from libs.common.states import JobState
from services.worker.patience import Stage


class Finished(NamedTuple):
    """The terminal marker was seen."""

    final: dict[str, Any]


class Rejected(NamedTuple):
    """An HTTP error before the first byte of an answer."""

    status: int
    text: str


class Broke(NamedTuple):
    """Connecting failed, the stream broke, held nonsense, or ended without its terminal marker."""

    text: str


class StopReason(StrEnum):
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    FENCED = "fenced"  # the binding is somebody else's by now
    DRAIN = "drain"
    CUT_OFF = "cut_off"  # no NATS for too long
    TOO_LARGE = "too_large"  # the log outgrew what a worker keeps in memory


class Stopped(NamedTuple):
    reason: StopReason
    text: str = ""


class Unfit(NamedTuple):
    """Part of the answer had been shown, and it cannot be gone on with: starting again would write over it."""

    text: str


class Silent(NamedTuple):
    """The node said nothing for so long, at that stage, that it counts as stuck."""

    stage: Stage
    seconds: float


Ending: TypeAlias = Finished | Rejected | Broke | Stopped | Unfit | Silent


class Finish(NamedTuple):
    """Write `done` with this state."""

    state: JobState
    fault: Fault | None = None
    final: dict[str, Any] | None = None


class GiveBack(NamedTuple):
    """Tell the router; a fault counts as a failed attempt unless it says that the node was busy."""

    fault: Fault | None


class Drop(NamedTuple):
    """Write nothing, say nothing: it is somebody else's job now."""


Outcome: TypeAlias = Finish | GiveBack | Drop

_SILENT = {
    Stage.LOAD: "the node did not bring the model into memory",
    Stage.RENDER: "the node did not say how it renders the prompt",
    Stage.FIRST: "the node fell silent before the first token",
    Stage.ANSWER: "the node fell silent in the middle of the answer",
}
_CONTEXT = (
    "exceed_context_size",
    "exceeds the available context",
    "exceeds the context length",
    "longer than the context",
)
_OWN_FAULT = frozenset(
    {400, 413, 422, 501}
)  # other codes tell of the node: not signed in, a foreign Host, another server
_OWN_FAULT_500 = ("must be of type", "invalid format", "image input is not supported", "image data")


def classify(ending: Ending) -> Outcome:
    match ending:
        case Finished(final):
            return Finish(JobState.SUCCEEDED, final=final)
        case Stopped(reason, text):
            return _stopped(reason, text)
        case Rejected(503 | 429, text):
            return GiveBack(Fault(code=Code.NODE_BUSY, message=text))
        case Rejected(404, text):
            # The model was deleted behind our back; another node may have it.
            return GiveBack(Fault(code=Code.NODE_FAILED, message=text))
        case Rejected(status, text) if _requests_own_fault(status, text):
            code = Code.CONTEXT_LENGTH_EXCEEDED if any(part in text for part in _CONTEXT) else Code.NODE_REJECTED
            return Finish(JobState.FAILED, Fault(code=code, message=text))
        case Rejected(status, text):
            return GiveBack(Fault(code=Code.NODE_FAILED, message=f"{text} (HTTP {status})"))
        case Unfit(text):
            message = (
                f"the answer was cut off by the loss of a node and cannot be continued ({text}); send the request again"
            )
            return Finish(JobState.FAILED, Fault(code=Code.INTERRUPTED, message=message))
        case Broke(text):
            return GiveBack(Fault(code=Code.NODE_FAILED, message=text))
        case Silent(stage, seconds):
            return GiveBack(Fault(code=Code.NODE_FAILED, message=f"{_SILENT[stage]} ({seconds:.3g} s)"))


def _stopped(reason: StopReason, text: str) -> Outcome:
    match reason:
        case StopReason.CANCELLED:
            return Finish(JobState.CANCELLED, Fault(code=Code.CANCELLED, message=text or "cancelled"))
        case StopReason.DEADLINE:
            fault = Fault(code=Code.DEADLINE_EXCEEDED, message="the job ran out of time; give it a longer deadline_s")
            return Finish(JobState.EXPIRED, fault)
        case StopReason.TOO_LARGE:
            return Finish(JobState.FAILED, Fault(code=Code.RESULT_TOO_LARGE, message=text or "the answer is too large"))
        case StopReason.FENCED:
            return Drop()
        case StopReason.DRAIN | StopReason.CUT_OFF:
            return GiveBack(None)


def _requests_own_fault(status: int, text: str) -> bool:
    if status == 500:
        return any(part in text for part in _OWN_FAULT_500)
    return status in _OWN_FAULT
