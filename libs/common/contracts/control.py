"""What router, workers and gateways say to each other on core NATS. Any of it may be lost, late or said twice."""

from enum import StrEnum

from libs.common.contracts.codec import Contract, Decoder
from libs.common.contracts.faults import Fault
from libs.common.contracts.jobs import Decision, Submission


class Run(Contract, frozen=True, kw_only=True):
    """`ctl.<node>.<boot>.run`: execute this binding. Asking again is always safe: a boot runs a (job, epoch) once.

    `revision` is the sequence of the `active` record, `submitted` that of `new`; the worker reads both itself.
    """

    client: str
    job: str
    epoch: int
    revision: int
    submitted: int
    seconds_left: float
    keep_alive: str | int | None = None
    num_ctx: int | None = None
    evict: tuple[str, ...] = ()  # models to unload first, so that this one fits; the router chose them by their price


class RunStatus(StrEnum):
    RUNNING = "running"
    FINISHED = "finished"  # its `done` was written, or it was fenced
    GIVEN_BACK = "given_back"  # `fault` says why, None when it was no fault of job or node (drain)
    REFUSED = "refused"


class RunAnswer(Contract, frozen=True, kw_only=True):
    status: RunStatus
    changes: int
    reason: str = ""
    fault: Fault | None = None


class CancelRun(Contract, frozen=True, kw_only=True):
    """`ctl.<node>.<boot>.cancel`. A cancel for an epoch that was never seen counts as having seen it."""

    client: str
    job: str
    epoch: int
    reason: str
    fenced: bool = False  # the binding is gone: stop, and write nothing


class CancelAnswer(Contract, frozen=True, kw_only=True):
    known: bool
    changes: int


class Free(Contract, frozen=True, kw_only=True):
    """`ctl.router.free`: this run holds its slot no longer; with `given_back`, somebody else may do better."""

    node: str
    boot: str
    client: str
    job: str
    epoch: int
    changes: int
    given_back: bool = False
    fault: Fault | None = None


class Read(Contract, frozen=True, kw_only=True):
    """`ctl.<node>.<boot>.read`: the log of one run from an offset on. Answer: a chunk frame, or nothing if unknown."""

    client: str
    job: str
    epoch: int
    offset: int


class Pong(Contract, frozen=True, kw_only=True):
    node: str
    boot: str


class FreezePrefix(Contract, frozen=True, kw_only=True):
    """`prefix.<client>.<job>`: the router gathers what was shown of `epoch`. A gateway that answers shows no more of it
    and of older epochs. `epoch` 0 only asks whether somebody watches. Answer: a chunk frame of the bytes it holds."""

    epoch: int


class PlaceQuery(Contract, frozen=True, kw_only=True):
    """`ctl.router.place`: where is this job in the queue?"""

    client: str
    job: str


class PlaceAnswer(Contract, frozen=True, kw_only=True):
    """`position` is 1 for the job that is served next; None when the job does not wait. `start_s`: predicted seconds
    until its first token."""

    position: int | None = None
    start_s: float | None = None
    reason: str = ""


class Quote(Contract, frozen=True, kw_only=True):
    """`ctl.router.quote`: where would a job like this go, and when? Nothing is stored and no slot is held."""

    client: str
    submission: Submission


class QuoteAnswer(Contract, frozen=True, kw_only=True):
    """`decision` None: no node can take it at all, `reason` says why. Seconds from now, as predicted; `guessed`: from nothing
    that was seen of this model."""

    decision: Decision | None = None
    reason: str = ""
    start_s: float | None = None
    finish_s: float | None = None
    guessed: bool = False


class ModelOp(StrEnum):
    LOAD = "load"
    UNLOAD = "unload"
    PULL = "pull"


class ModelOrder(Contract, frozen=True, kw_only=True):
    """`ctl.<node>.<boot>.model`: work on a model of this node. Asking again joins the same work and tells how far it is;
    what has ended is remembered for a minute, for the `op_id` that asked: another one begins anew."""

    op: ModelOp
    model: str
    keep_alive: str | int | None = None
    num_ctx: int | None = None
    evict: tuple[str, ...] = ()  # as in Run: to leave memory before a load, unless runs use them
    op_id: str = ""


class ModelWork(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class ModelAnswer(Contract, frozen=True, kw_only=True):
    """`completed` of `total` bytes while Ollama tells them (a pull), else 0. `load_s`: seconds that Ollama took to bring the
    model into memory, nothing else before it; 0: it was there, or that is not known."""

    state: ModelWork
    status: str = ""
    completed: int = 0
    total: int = 0
    load_s: float = 0.0


class Erase(Contract, frozen=True, kw_only=True):
    """`ctl.router.erase`: the owner deletes a finished job; `sequence` is that of the `done` it saw."""

    client: str
    job: str
    sequence: int


class EraseAnswer(Contract, frozen=True, kw_only=True):
    erased: bool
    reason: str = ""


decode_run = Decoder(Run)
decode_run_answer = Decoder(RunAnswer)
decode_cancel_run = Decoder(CancelRun)
decode_cancel_answer = Decoder(CancelAnswer)
decode_free = Decoder(Free)
decode_read = Decoder(Read)
decode_pong = Decoder(Pong)
decode_freeze = Decoder(FreezePrefix)
decode_place_query = Decoder(PlaceQuery)
decode_quote = Decoder(Quote)
decode_quote_answer = Decoder(QuoteAnswer)
decode_model_order = Decoder(ModelOrder)
decode_model_answer = Decoder(ModelAnswer)
decode_place_answer = Decoder(PlaceAnswer)
decode_erase = Decoder(Erase)
decode_erase_answer = Decoder(EraseAnswer)
